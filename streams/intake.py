"""All devices of a partition, as columns: from decoded readings to accepted ones and to complete windows.

A chunk holds readings of many devices. They are checked, put in order and cut into windows together, whatever device
they are of, so that the cost of a reading does not grow with the number of devices; each device has a row in arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from schemas.activity import CHANNEL_NAMES
from streams.gate import KNOWN_READINGS, Prints, Rejection, Rows, in_order, prints_of, usable, why_unusable
from streams.records import Chunk
from streams.windows import (
    HOP,
    MAX_GAP_S,
    WINDOW,
    Floats,
    Ints,
    Readings,
    Windows,
    complete_gravity,
    empty_readings,
    no_windows,
)

_FIRST_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Buffered:
    """What one device's intake has to remember.

    last_offset: the last record taken. last_ts: event time of the last accepted reading, -inf before any. run: readings
    since the last gap. readings: those of them that the next window still needs. known: fingerprints of the last ones.
    """

    last_offset: int = -1
    last_ts: float = float("-inf")
    run: int = 0
    readings: Readings = field(default_factory=empty_readings)
    known: Prints = field(default_factory=lambda: np.empty(0, np.uint32))


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a chunk. rows: the devices with accepted readings, in any order.

    readings: the accepted ones, those of rows[i] at bounds[i] to bounds[i + 1]. windows: the completed ones in the
    same order of devices, window_rows: (w,) the device of each. changed: devices whose `Buffered` changed.
    """

    rows: Ints
    bounds: Ints
    readings: Readings
    windows: Windows
    window_rows: Ints
    changed: Ints
    rejections: list[Rejection]
    duplicates: int


class Intake:
    """Devices by their row. windowed: whether windows are wanted, and readings buffered for them."""

    def __init__(self, *, windowed: bool = True) -> None:
        self.windowed = windowed
        self._make(_FIRST_ROWS)

    def _make(self, rows: int) -> None:
        self.last_offset = np.full(rows, -1, np.int64)
        self.last_ts = np.full(rows, -np.inf)
        self.run = np.zeros(rows, np.int64)
        self.count = np.zeros(rows, np.int64)  # accepted readings: where the rings below are written next
        self.known = np.empty((rows, KNOWN_READINGS), np.uint32)
        buffered = rows if self.windowed else 0
        self.values = np.empty((buffered, WINDOW, len(CHANNEL_NAMES)))
        self.ts = np.empty((buffered, WINDOW))
        self.labels = np.empty((buffered, WINDOW), np.int8)
        self.offsets = np.empty((buffered, WINDOW), np.int64)

    def reserve(self, row: int) -> None:
        """Room for a device's row. Pages of an array are memory only once written to."""
        has = len(self.last_ts)
        if row < has:
            return
        names = ("last_offset", "last_ts", "run", "count", "known", "values", "ts", "labels", "offsets")
        old = {name: getattr(self, name) for name in names}
        self._make(max(2 * has, row + 1))
        for name, array in old.items():
            getattr(self, name)[: len(array)] = array

    def restore(self, row: int, buffered: Buffered) -> None:
        """Let a device go on from what was remembered of it."""
        self.reserve(row)
        self.last_offset[row], self.last_ts[row], self.run[row] = buffered.last_offset, buffered.last_ts, buffered.run
        count, kept = len(buffered.known), len(buffered.readings)
        self.count[row] = count
        self.known[row, np.arange(count) % KNOWN_READINGS] = buffered.known
        if self.windowed and kept:
            ring = np.arange(count - kept, count) % WINDOW
            self.values[row, ring], self.ts[row, ring] = buffered.readings.values, buffered.readings.ts
            self.labels[row, ring], self.offsets[row, ring] = buffered.readings.labels, buffered.readings.offsets

    def buffered(self, row: int) -> Buffered:
        """What has to be remembered of a device."""
        count, run = int(self.count[row]), int(self.run[row])
        readings = empty_readings()
        if self.windowed:
            # The next window ends at position WINDOW - 1 + k * HOP of the run, the first of these not yet there.
            kept = run if run < WINDOW else (run - WINDOW) % HOP + WINDOW - HOP
            ring = np.arange(count - kept, count) % WINDOW
            readings = Readings(
                self.ts[row, ring],
                self.values[row, ring],
                self.labels[row, ring].astype(np.int64),
                self.offsets[row, ring],
            )
        return Buffered(int(self.last_offset[row]), float(self.last_ts[row]), run, readings, self._known(row, count))

    def _known(self, row: int, count: int) -> Prints:
        found: Prints = self.known[row, np.arange(max(0, count - KNOWN_READINGS), count) % KNOWN_READINGS]
        return found

    def take(self, rows: Rows, chunk: Chunk) -> Taken:
        """Take a chunk's decoded readings, whose device codes are rows here."""
        offsets = np.fromiter(chunk.offsets, np.int64, len(chunk))[rows.source]
        unseen = offsets > self.last_offset[rows.device]
        at = np.arange(len(rows)) if unseen.all() else np.flatnonzero(unseen)
        device = rows.device[at]
        if len(device) and (device != device[0]).any():
            # 16 bits are sorted by their digits, in a fraction of the time.
            order = np.argsort(device.astype(np.uint16) if device.max() < 1 << 16 else device, kind="stable")
            at, device = at[order], device[order]
        offsets = offsets[at]
        stamps = np.fromiter(chunk.timestamps, np.int64, len(chunk))[rows.source[at]]
        fresh, rejections, duplicates = self._judge(rows, at, device, stamps, chunk)
        last = _lasts(device)
        changed = device[last]
        self.last_offset[changed] = offsets[last]
        if not fresh.all():
            at, device, offsets = at[fresh], device[fresh], offsets[fresh]
        return self._accept(rows, at, device, offsets, changed, rejections, duplicates)

    def _judge(
        self, rows: Rows, at: Ints, device: Ints, stamps: Ints, chunk: Chunk
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], list[Rejection], int]:
        ts, values = rows.ts[at], rows.values[at]
        good = usable(ts, values, stamps)
        firsts = _firsts(device)
        earlier = np.empty(len(ts))
        earlier[1:] = ts[:-1]
        earlier[firsts] = self.last_ts[device[firsts]]
        if good.all() and (ts > earlier).all():
            return good, [], 0
        fresh, found, duplicates = good.copy(), _Found(chunk, rows.source[at]), 0
        found.add(np.flatnonzero(~good), lambda row: why_unusable(ts[row], values[row]))
        suspects = set(device[~good | (ts <= earlier)].tolist())
        for first, end in _spans(firsts, len(device)):
            one = int(device[first])
            if one not in suspects:
                continue
            part = slice(first, end)
            fresh[part], late, highest = in_order(
                ts[part],
                good[part],
                prints_of(ts[part], values[part]),
                stamps[part],
                float(self.last_ts[one]),
                self._known(one, int(self.count[one])),
            )
            duplicates += int((good[part] & ~fresh[part]).sum()) - len(late)
            if len(late):
                found.add(late + first, partial(_why_late, ts, first, highest))
        return fresh, found.rejections(), duplicates

    def _accept(
        self,
        rows: Rows,
        at: Ints,
        device: Ints,
        offsets: Ints,
        changed: Ints,
        rejections: list[Rejection],
        duplicates: int,
    ) -> Taken:
        ts, values = rows.ts[at], rows.values[at]
        prints = prints_of(ts, values)  # of what was sent: gravity as computed is no part of it
        readings = Readings(ts, complete_gravity(values), rows.labels[at], offsets)
        firsts = _firsts(device)
        mine = device[firsts]
        counts = np.diff(firsts, append=len(device))
        rank = np.arange(len(device)) - np.repeat(firsts, counts)
        place = self.count[device] + rank
        kept = rank >= np.repeat(counts, counts) - KNOWN_READINGS
        self.known[device[kept], place[kept] % KNOWN_READINGS] = prints[kept]
        windows, window_rows = no_windows(), np.empty(0, np.int64)
        if self.windowed and len(device):
            windows, window_rows = self._cut(readings, device, firsts, counts, rank, place)
        self.count[mine] += counts
        if len(device):
            self.last_ts[mine] = ts[firsts + counts - 1]
        return Taken(
            mine, np.append(firsts, len(device)), readings, windows, window_rows, changed, rejections, duplicates
        )

    def _cut(
        self, readings: Readings, device: Ints, firsts: Ints, counts: Ints, rank: Ints, place: Ints
    ) -> tuple[Windows, Ints]:
        """Windows that these readings complete; the readings go into the rings, where the next ones find them.

        Windows begin every HOP readings from the first one of each unbroken run; a gap of more than MAX_GAP_S ends a
        run, and so does a clock that was set right. Feeding readings one by one or all at once gives the same windows.
        """
        count = len(device)
        earlier = np.empty(count)
        earlier[1:] = readings.ts[:-1]
        earlier[firsts] = self.last_ts[device[firsts]]
        step = readings.ts - earlier
        gap = (step > MAX_GAP_S) | (step < 0)  # of a clock that was set right, too
        # Each reading's position in its run: counted from the last gap, or on from the device's run.
        index = np.arange(count)
        begins = gap.copy()
        begins[firsts] = True
        base = np.where(gap, index, index - self.run[device])
        run = index - base[np.maximum.accumulate(np.where(begins, index, 0))]
        ends = np.flatnonzero((run >= WINDOW - 1) & ((run - (WINDOW - 1)) % HOP == 0))
        windows = self._windows_at(readings, ends, device, rank, place) if len(ends) else no_windows()
        kept = np.flatnonzero(rank >= np.repeat(counts, counts) - WINDOW)
        row, ring = device[kept], place[kept] % WINDOW
        self.values[row, ring], self.ts[row, ring] = readings.values[kept], readings.ts[kept]
        self.labels[row, ring], self.offsets[row, ring] = readings.labels[kept], readings.offsets[kept]
        lasts = firsts + counts - 1
        self.run[device[lasts]] = run[lasts] + 1
        return windows, device[ends]

    def _windows_at(self, readings: Readings, ends: Ints, device: Ints, rank: Ints, place: Ints) -> Windows:
        back = np.arange(1 - WINDOW, 1)
        index = ends[:, None] + back
        before = rank[ends][:, None] + back < 0  # readings of earlier chunks
        inside = np.where(before, 0, index)
        values, labels = readings.values[inside], readings.labels[inside]
        start, first_offset = readings.ts[inside[:, 0]], readings.offsets[inside[:, 0]]
        if before.any():
            rows = np.broadcast_to(device[ends][:, None], before.shape)[before]
            ring = (place[ends][:, None] + back)[before] % WINDOW
            values[before], labels[before] = self.values[rows, ring], self.labels[rows, ring]
            begun = before[:, 0]
            rows, ring = device[ends][begun], (place[ends][begun] + 1 - WINDOW) % WINDOW
            start[begun], first_offset[begun] = self.ts[rows, ring], self.offsets[rows, ring]
        return Windows(
            values,
            start,
            readings.ts[ends],
            first_offset,
            readings.offsets[ends],
            np.where((labels == labels[:, :1]).all(1), labels[:, 0], -1),
        )


class _Found:
    """Rejected readings, put together by the record that carried them: a batch is dead-lettered once."""

    def __init__(self, chunk: Chunk, source: Ints) -> None:
        self.chunk = chunk
        self.source = source
        self.first: dict[int, tuple[str, str]] = {}
        self.more: dict[int, int] = {}

    def add(self, rows: Ints, why: Callable[[int], tuple[str, str]]) -> None:
        """why: class and reason of a row, asked for the first of each record."""
        records, firsts, counts = np.unique(self.source[rows], return_index=True, return_counts=True)
        for record, at, count in zip(records.tolist(), firsts.tolist(), counts.tolist(), strict=True):
            known = record in self.first
            if not known:
                self.first[record] = why(int(rows[at]))
            self.more[record] = self.more.get(record, 0) + count - (not known)

    def rejections(self) -> list[Rejection]:
        found = []
        for record, (reject_class, reason) in sorted(self.first.items()):
            more = self.more.get(record, 0)
            counted = f"{reason} (and {more} more readings of this batch)" if more else reason
            found.append(Rejection(self.chunk.record(record), reject_class, counted))
        return found


def _why_late(ts: Floats, first: int, highest: Floats, row: int) -> tuple[str, str]:
    """highest: of the device, whose rows begin at `first`."""
    return "out-of-order", f"ts {ts[row]:.3f} is not after {highest[row - first]:.3f}, already accepted"


def _firsts(device: Ints) -> Ints:
    """Index of the first of each stretch of equal values."""
    if not len(device):
        return np.empty(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(device[1:] != device[:-1]) + 1])


def _lasts(device: Ints) -> Ints:
    """Index of the last of each stretch of equal values."""
    firsts = _firsts(device)
    return np.append(firsts[1:] - 1, len(device) - 1) if len(firsts) else firsts


def _spans(firsts: Ints, count: int) -> list[tuple[int, int]]:
    starts = firsts.tolist()
    return list(zip(starts, [*starts[1:], count], strict=True))


class Names(dict[str, int]):
    """Rows of devices by name; a name that is asked for the first time gets the next free row, as `added` is told."""

    def __init__(self, added: Callable[[str, int], None] = lambda name, row: None) -> None:
        super().__init__()
        self.added = added
        self.by_row: list[str] = []
        self.free: list[int] = []

    def __missing__(self, name: str) -> int:
        if self.free:
            row = self.free.pop()
            self.by_row[row] = name
        else:
            row = len(self.by_row)
            self.by_row.append(name)
        self[name] = row
        self.added(name, row)
        return row

    def drop(self, rows: Sequence[int]) -> None:
        """Give rows back."""
        for row in rows:
            del self[self.by_row[row]]
            self.by_row[row] = ""
            self.free.append(row)
