"""Is the sensor measuring at all? A broken channel is told as such, and neither judged nor learned from.

The gate looks at each reading; this looks at a device's windows over event time: a value that is stuck, a sensor at the
end of its range, a sampling rate that is off, readings that are missing or were refused. `QualityDegraded` is sent
once when a fault begins and once when it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.activity import CHANNEL_NAMES, SAMPLE_RATE_HZ
from schemas.events import Fault
from streams.gate import Rejection
from streams.measures import CLIPPED, REPEATED, WIDTH
from streams.windows import HOP, WINDOW, Floats, Windows

Mask = NDArray[np.bool_]

STUCK_SHARE: Final = 0.9  # of a window's readings that repeat the one before; MotionSense has at most .02
CLIPPED_SHARE: Final = 0.1
RATE_TOLERANCE: Final = 0.2  # of 50 Hz; beyond it spectra and rates mean something else
BEGIN_WINDOWS: Final = 3  # bad ones in a row before a fault is told: 5 s
END_WINDOWS: Final = 3  # good ones in a row before it is over
REFUSED_SHARE: Final = 0.2  # of a hop's readings
LOST_WINDOWS: Final = 24  # over which lost time is looked at
LOST_SHARE: Final = 0.3
_MORE: Final = re.compile(r"\(and (\d+) more readings")  # how the gate tells of a batch's others
DEVICE: Final = "*"  # the channel of faults that are the whole device's
_PERIOD_S: Final = HOP / SAMPLE_RATE_HZ
_LENGTH_S: Final = (WINDOW - 1) / SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class Degraded:
    """A fault of one channel has begun, or ended. ts: event time; offset: the record that showed it."""

    channel: str
    fault: Fault
    ts: float
    offset: int
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Readings that the gate has refused: in which record, how, and of which channel if one is named."""

    offset: int
    fault: Fault
    channel: str
    count: int = 1


def refused_of(offset: int, reject_class: str, reason: str) -> Refused | None:
    """What a rejection of the gate says about a sensor; None for what is not a sensor's doing.

    Readings that come out of order, again and again, are a second phone's under the same name: more of them than one
    sensor sends.
    """
    if reject_class == "out-of-order":
        more = _MORE.search(reason)
        return Refused(offset, "rate", DEVICE, 1 + int(more[1]) if more else 1)
    if reject_class not in ("not-finite", "out-of-range"):
        return None
    named = reason.split(" ", 1)[0]
    more = _MORE.search(reason)
    fault: Fault = "not-finite" if reject_class == "not-finite" else "out-of-range"
    return Refused(offset, fault, named if named in CHANNEL_NAMES else DEVICE, 1 + int(more[1]) if more else 1)


def refused_by_device(rejections: Iterable[Rejection], codes: Mapping[str, int]) -> dict[int, list[Refused]]:
    """What the gate has refused of devices that are known, by their code."""
    found: dict[int, list[Refused]] = {}
    for rejection in rejections:
        item = refused_of(rejection.record.offset, rejection.reject_class, rejection.reason)
        key = (rejection.record.key or b"").decode("ascii", "replace")
        if item is not None and key in codes:
            found.setdefault(codes[key], []).append(item)
    return found


class _Episode(msgspec.Struct, array_like=True):
    """How many windows in a row were bad, or good again once the fault was told."""

    bad: int = 0
    good: int = 0
    told: bool = False


def faulty(measures: Floats) -> Mask:
    """(n, 12): which channels of windows with these measures (n, ≥44) do not measure."""
    return (measures[:, REPEATED] >= STUCK_SHARE) | (measures[:, CLIPPED] >= CLIPPED_SHARE)


def off_rate(start: Floats, end: Floats) -> Mask:
    """(n,): which windows were not sampled at 50 Hz."""
    return np.abs((end - start) / _LENGTH_S - 1) > RATE_TOLERANCE


class Quality:
    """One device's faults."""

    def __init__(self) -> None:
        self.episodes: dict[tuple[str, Fault], _Episode] = {}
        self.last_end: float | None = None
        self.lost: list[float] = []
        self.refused: dict[tuple[str, Fault], int] = {}

    def observe(self, windows: Windows, refused: Sequence[Refused] = ()) -> tuple[list[Degraded], Mask | None]:
        """What has begun or ended with these windows and refused readings, and (n, 12) what is not to be judged; None
        where all is.
        """
        if self._quiet(windows, refused):
            return [], None
        measures = np.empty((0, WIDTH)) if windows.measures is None else windows.measures
        bad = faulty(measures)
        slow = off_rate(windows.start, windows.end)
        told: list[Degraded] = []
        waiting = sorted(refused, key=lambda item: item.offset)
        for row in range(len(windows)):
            offset, ts = int(windows.last_offset[row]), float(windows.end[row])
            while waiting and waiting[0].offset <= offset:
                self._refuse(waiting.pop(0), told)
            seen: set[tuple[str, Fault]] = set()
            for channel in np.flatnonzero(bad[row]).tolist():
                stuck = measures[row, REPEATED.start + channel] >= STUCK_SHARE
                seen.add((CHANNEL_NAMES[channel], "stuck" if stuck else "out-of-range"))
            if slow[row]:
                seen.add((DEVICE, "rate"))
            if self._losing(ts):
                seen.add((DEVICE, "gap"))
            seen |= {key for key, count in self.refused.items() if count >= REFUSED_SHARE * HOP}
            self.refused.clear()
            self._turn(seen, ts, offset, told)
            for name, fault in seen | {key for key, episode in self.episodes.items() if episode.told}:
                if fault == "gap":
                    continue  # what did come is right
                bad[row, slice(None) if name == DEVICE else CHANNEL_NAMES.index(name)] = True
        for item in waiting:
            self._refuse(item, told)
        return told, bad

    def broken(self, windows: Windows, refused: Sequence[Refused] = ()) -> Mask:
        """(n,) which of these windows are not to be judged in some channel; as `observe` takes them."""
        _, broken = self.observe(windows, refused)
        return np.zeros(len(windows), np.bool_) if broken is None else np.asarray(broken.any(1))

    def _quiet(self, windows: Windows, refused: Sequence[Refused]) -> bool:
        """Whether nothing is wrong and nothing was: the usual case, and the cheap one."""
        if self.episodes or self.refused or refused or any(self.lost):
            return False
        if not len(windows):
            return True
        assert windows.measures is not None
        shares = windows.measures[:, REPEATED.start : CLIPPED.stop]
        # Of one window, as mostly comes, Python finds the highest of 24 numbers sooner than numpy.
        if (max(shares[0].tolist()) if len(shares) == 1 else shares.max()) >= min(STUCK_SHARE, CLIPPED_SHARE):
            return False
        before = self.last_end
        for start, end in zip(windows.start.tolist(), windows.end.tolist(), strict=True):
            if abs((end - start) / _LENGTH_S - 1) > RATE_TOLERANCE:
                return False
            if before is not None and end - before - _PERIOD_S > _PERIOD_S:
                return False
            before = end
        self.last_end = before
        return True

    def _losing(self, ts: float) -> bool:
        """Whether much of the last half minute is missing, again and again: a device that is off loses it at once."""
        lost = 0.0 if self.last_end is None else ts - self.last_end - _PERIOD_S
        self.last_end = ts
        self.lost = [*self.lost, lost if lost > _PERIOD_S else 0.0][-LOST_WINDOWS:]
        times = sum(1 for item in self.lost if item)
        if not times:
            self.lost = []
        total = sum(self.lost)
        return times >= 3 and total >= LOST_SHARE * (total + LOST_WINDOWS * _PERIOD_S)

    def _turn(self, seen: set[tuple[str, Fault]], ts: float, offset: int, told: list[Degraded]) -> None:
        for key in sorted({*seen, *self.episodes}):
            episode = self.episodes.setdefault(key, _Episode())
            if key in seen:
                episode.bad, episode.good = episode.bad + 1, 0
                if not episode.told and episode.bad >= BEGIN_WINDOWS:
                    episode.told = True
                    told.append(Degraded(*key, ts, offset))
                continue
            episode.bad, episode.good = 0, episode.good + 1
            if not episode.told or episode.good >= END_WINDOWS:
                if episode.told:
                    told.append(Degraded(*key, ts, offset, ended=True))
                del self.episodes[key]

    def _refuse(self, item: Refused, told: list[Degraded]) -> None:
        """Count a refused reading; with so many that no window comes any more, the fault is told without one."""
        key = (item.channel, item.fault)
        before = self.refused.get(key, 0)
        self.refused[key] = before + item.count
        if before < BEGIN_WINDOWS * HOP <= before + item.count and self.last_end is not None:
            episode = self.episodes.setdefault(key, _Episode())
            if not episode.told:
                episode.bad, episode.told = BEGIN_WINDOWS, True
                told.append(Degraded(*key, self.last_end, item.offset))

    def dump(self) -> Any:
        """State as plain values."""
        return [
            [
                [channel, fault, episode.bad, episode.good, episode.told]
                for (channel, fault), episode in self.episodes.items()
            ],
            self.last_end,
            self.lost,
            [[*key, count] for key, count in self.refused.items()],
        ]

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        episodes, self.last_end, self.lost, refused = state
        self.episodes = {(channel, fault): _Episode(*rest) for channel, fault, *rest in episodes}
        self.refused = {(channel, fault): count for channel, fault, count in refused}
