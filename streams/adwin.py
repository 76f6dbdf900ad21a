"""river's ADWIN as this project uses it, and the detectors that are an ADWIN alone on each column.

`river.drift.ADWIN` is a wrapper around the class used here: its update of one value costs four times this one's, and
importing it loads scikit-learn, SciPy and pandas, a second and 150 MB of each start.

What a window saw is known at detection time, and its state is plain bytes:
river resets lazily (the update after a detection begins an empty window) and never says how far the mean moved, so
both are kept here. A value must be finite: the gate sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from river._river_rust.drift import AdaptiveWindowing

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


def restore(adwin: AdaptiveWindowing, blob: bytes) -> None:
    """Put a dumped state into an ADWIN. Raises Stop if the bytes are not one."""
    try:
        adwin.__setstate__(blob)
    except BaseException as error:  # river's Rust panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise Stop(f"a detector's saved state cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Held:
    """What an ADWIN's window holds: how many values, their sum, and their squared deviations from the mean."""

    count: int
    total: float
    squares: float

    def then(self, values: Sequence[float]) -> _Held:
        """With values added as ADWIN itself adds them, one by one: bit for bit the same, wherever a chunk began."""
        added = np.array(values)
        total = np.add.accumulate(np.concatenate([[self.total], added]))
        count = np.arange(self.count + 1, self.count + 1 + len(added), dtype=np.float64)
        apart = added - total[:-1] / np.maximum(count - 1.0, 1.0)
        steps = np.where(count > 1.0, (count - 1.0) * apart * apart / count, 0.0)
        squares = np.add.accumulate(np.concatenate([[self.squares], steps]))
        return _Held(self.count + len(added), float(total[-1]), float(squares[-1]))


def _held(adwin: AdaptiveWindowing) -> _Held:
    return _Held(int(adwin.get_width()), float(adwin.get_total()), float(adwin.get_variance()))


def _detection(adwin: AdaptiveWindowing, before: _Held) -> tuple[Detection, float]:
    """The change that an ADWIN has just found, and its effect in standard deviations of all that it held before."""
    kept = _held(adwin)
    after = kept.total / kept.count if kept.count else 0.0
    dropped = before.count - kept.count
    mean = (before.total - after * kept.count) / dropped if dropped > 0 else after
    sd = (before.squares / before.count) ** 0.5
    return Detection(mean, after, kept.count), abs(after - mean) / max(sd, 1e-6)


class _AdwinBank:
    """An ADWIN alone on each column of a series: an alarm is a detection."""

    def __init__(self, names: Sequence[tuple[str, str]], config: str, history: int) -> None:
        self.config = config
        self.names = names
        self.adwins = [AdaptiveWindowing() for _ in names]
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
        absent: list[bool] = np.isnan(values).sum(0).astype(bool).tolist()
        found = []
        for number, column in enumerate(values.T):
            rows = np.flatnonzero(~np.isnan(column)) if absent[number] else None
            series = (column if rows is None else column[rows]).tolist()
            adwin, first = self.adwins[number], 0
            held = _held(adwin)
            left = iter(series)
            while True in map(adwin.update, left):
                at = len(series) - left.__length_hint__() - 1
                row = at if rows is None else int(rows[at])
                found.append((row, number, *_detection(adwin, held.then(series[first : at + 1]))))
                adwin = self.adwins[number] = AdaptiveWindowing()
                first, held = at + 1, _held(adwin)
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
        return [adwins, self.ts.tobytes(), self.offsets.tobytes()]

    def load(self, state: Any) -> None:
        adwins, ts, offsets = state
        for adwin, blob in zip(self.adwins, adwins, strict=True):
            restore(adwin, blob)
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
