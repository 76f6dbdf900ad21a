"""river's ADWIN as this project uses it, and the detectors that are an ADWIN alone on each column.

What a window saw is known at detection time, and its state is plain bytes:
river resets lazily (the update after a detection begins an empty window) and never says how far the mean moved, so
both are kept here. A value must be finite: the gate sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from river.drift import ADWIN

from schemas.activity import CHANNELS
from schemas.errors import Stop
from streams.drift import Change
from streams.quality import Degraded, Refused
from streams.statistics import STATISTICS, statistics
from streams.windows import Floats, Ints, Readings, Windows


@dataclass(frozen=True, slots=True)
class Detection:
    """before, after: means on either side of the cut; width: values since the change, the present one included."""

    before: float
    after: float
    width: int


class AdaptiveWindow:
    """One ADWIN (Bifet & Gavaldà, SDM 2007) over one stream of numbers."""

    def __init__(self, delta: float, clock: int = 32, grace_period: int = 10) -> None:
        self._parameters = {"delta": delta, "clock": clock, "grace_period": grace_period}
        self.adwin: Any = ADWIN(**self._parameters)
        self.total = 0.0
        self.count = 0

    def update(self, value: float) -> Detection | None:
        """Take one value in; the detection if the mean has changed, after which the window begins anew."""
        self.adwin.update(value)
        self.total += value
        self.count += 1
        if not self.adwin.drift_detected:
            return None
        width, after = int(self.adwin.width), float(self.adwin.estimation)
        earlier = self.count - width
        before = (self.total - after * width) / earlier if earlier > 0 else after
        self.adwin, self.total, self.count = ADWIN(**self._parameters), 0.0, 0
        return Detection(before, after, width)

    def dump(self) -> tuple[bytes, float, int]:
        """State to continue from, bit for bit, under the same river version and parameters."""
        return self.adwin._helper.__getstate__(), self.total, self.count

    def load(self, state: tuple[bytes, float, int]) -> None:
        """Continue from a dumped state. Raises Stop if the bytes are not one."""
        blob, self.total, self.count = state
        restore(self.adwin._helper, blob)


def restore(helper: Any, blob: bytes) -> None:
    """Put a dumped state into river's own ADWIN. Raises Stop if the bytes are not one."""
    try:
        helper.__setstate__(blob)
    except BaseException as error:  # river's Rust panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise Stop(f"a detector's saved state cannot be read: {error}") from error


def _fresh() -> Any:
    """river's own ADWIN without its wrapper, whose update of one value costs four times this one's."""
    return ADWIN()._helper


def _running(sums: Floats, values: Floats) -> Floats:
    """(3, n + 1, columns) counts, sums and sums of squares of values (n, columns) up to each row, going on from sums.

    Added up in the order of the rows, whatever the chunks: not pairwise, as `sum` would.
    """
    there = ~np.isnan(values)
    known = np.where(there, values, 0.0)
    steps = np.stack([there.astype(np.float64), known, known * known])
    return np.add.accumulate(np.concatenate([sums[:, None], steps], axis=1), axis=1)


def _detection(adwin: Any, count: float, total: float, square: float) -> tuple[Detection, float]:
    """The change that an ADWIN has just found, and its effect in standard deviations of what it had seen by then."""
    width = int(adwin.get_width())
    after = float(adwin.get_total()) / width if width else 0.0
    earlier = count - width
    before = (total - after * width) / earlier if earlier > 0 else after
    sd = max(square / count - (total / count) ** 2, 0.0) ** 0.5
    return Detection(before, after, width), abs(after - before) / max(sd, 1e-6)


class _AdwinBank:
    """An ADWIN alone on each column of a series: an alarm is a detection."""

    def __init__(self, names: Sequence[tuple[str, str]], config: str, history: int) -> None:
        self.config = config
        self.names = names
        self.adwins = [_fresh() for _ in names]
        self.sums = np.zeros((3, len(names)))  # of 1, the value and its square, since each column's last change
        self.ts: Floats = np.empty(0)  # of the last values, to name the change point
        self.offsets: Ints = np.empty(0, np.int64)
        self.history = history

    def take(self, values: Floats, ts: Floats, offsets: Ints) -> list[Change]:
        """Changes in values (n, columns) seen at ts (n,) in records offsets (n,). NaN is a value that is not there.

        Values are fed by the column, in C, and give to the last bit what they give one by one.
        """
        earlier = len(self.ts)
        known_ts, known_offsets = np.concatenate([self.ts, ts]), np.concatenate([self.offsets, offsets])
        self.ts, self.offsets = known_ts[-self.history :], known_offsets[-self.history :]
        sums = _running(self.sums, values)
        found = []
        for number, column in enumerate(values.T):
            rows = np.flatnonzero(~np.isnan(column)) if sums[0, -1, number] - sums[0, 0, number] < len(column) else None
            left = iter((column if rows is None else column[rows]).tolist())
            length = left.__length_hint__()
            while True in map(self.adwins[number].update, left):
                at = length - left.__length_hint__() - 1
                row = at if rows is None else int(rows[at])
                found.append((row, number, *_detection(self.adwins[number], *sums[:, row + 1, number].tolist())))
                self.adwins[number] = _fresh()
                sums[:, row + 1 :, number] = _running(np.zeros((3, 1)), column[row + 1 :, None])[:, :, 0]
        self.sums = sums[:, -1].copy()
        return [
            self._change(number, detection, effect, earlier + row, known_ts, known_offsets)
            for row, number, detection, effect in sorted(found, key=lambda item: item[:2])
        ]

    def _change(self, number: int, detection: Detection, effect: float, row: int, ts: Floats, offsets: Ints) -> Change:
        feature, statistic = self.names[number]
        since = max(row + 1 - min(detection.width, self.history), 0)
        return Change(
            feature,
            statistic,
            "adwin",
            detection.before,
            detection.after,
            effect,
            float(ts[row]),
            float(ts[since]),
            int(offsets[row]),
            int(offsets[since]),
        )

    def dump(self) -> Any:
        adwins = [adwin.__getstate__() for adwin in self.adwins]
        return [adwins, self.sums.tobytes(), self.ts.tobytes(), self.offsets.tobytes()]

    def load(self, state: Any) -> None:
        adwins, sums, ts, offsets = state
        for adwin, blob in zip(self.adwins, adwins, strict=True):
            restore(adwin, blob)
        self.sums = np.frombuffer(sums, np.float64).reshape(self.sums.shape).copy()
        self.ts, self.offsets = np.frombuffer(ts, np.float64), np.frombuffer(offsets, np.int64)


class RawDetector(_AdwinBank):
    """ADWIN on each raw channel that a tutorial would take, reading by reading.

    Yaw and gravity are not among them: an upright phone's yaw wanders by itself, and gravity is attitude again.
    """

    measure: ClassVar[Callable[[Floats], Floats] | None] = None

    def __init__(self) -> None:
        self.rows = [
            index
            for index, channel in enumerate(CHANNELS)
            if channel.name != "attitude.yaw" and not channel.name.startswith("gravity.")
        ]
        super().__init__([(CHANNELS[index].name, "value") for index in self.rows], "raw/2", history=512)

    def observe(self, readings: Readings, windows: Windows, refused: Sequence[Refused] = ()) -> list[Change | Degraded]:
        """One value a channel and reading."""
        return [*self.take(readings.values[:, self.rows], readings.ts, readings.offsets)]


class PerFeatureDetector(_AdwinBank):
    """ADWIN on each window statistic, whatever the person does."""

    measure: ClassVar[Callable[[Floats], Floats] | None] = staticmethod(statistics)

    def __init__(self) -> None:
        super().__init__([(item.feature, item.kind) for item in STATISTICS], "per-feature/2", history=512)

    def observe(self, readings: Readings, windows: Windows, refused: Sequence[Refused] = ()) -> list[Change | Degraded]:
        """One value a statistic and window."""
        return [] if windows.measures is None else [*self.take(windows.measures, windows.end, windows.last_offset)]
