"""river's ADWIN as this project uses it, and the detectors that are an ADWIN alone on each column.

What a window saw is known at detection time, and its state is plain bytes:
river resets lazily (the update after a detection begins an empty window) and never says how far the mean moved, so
both are kept here. A value must be finite: the gate sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from river.drift import ADWIN

from schemas.activity import CHANNELS
from schemas.errors import Stop
from streams.drift import Change
from streams.statistics import STATISTICS, statistics
from streams.windows import Floats, Readings, Windows


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
        try:
            self.adwin._helper.__setstate__(blob)
        except BaseException as error:  # river's Rust panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise Stop(f"a detector's saved state cannot be read: {error}") from error


class _Track:
    """One ADWIN over one series, with what is needed to say when and how far it moved."""

    def __init__(self, delta: float, clock: int = 32, grace_period: int = 10) -> None:
        self.window = AdaptiveWindow(delta, clock, grace_period)
        self.square = 0.0

    def update(self, value: float) -> tuple[Detection, float] | None:
        """The detection and its effect in standard deviations of the series since the last one."""
        self.square += value * value
        count, total = self.window.count + 1, self.window.total + value
        detection = self.window.update(value)
        if detection is None:
            return None
        sd = max(self.square / count - (total / count) ** 2, 0.0) ** 0.5
        self.square = 0.0
        return detection, abs(detection.after - detection.before) / max(sd, 1e-6)


class _AdwinBank:
    """An ADWIN alone on each column of a series: an alarm is a detection."""

    def __init__(self, columns: Sequence[tuple[str, str]], config: str, history: int) -> None:
        self.config = config
        self.columns = columns
        self.tracks = [_Track(delta=0.002) for _ in columns]
        self.moments: list[tuple[float, int]] = []  # (ts, offset) of the last values, to name the change point
        self.history = history

    def take(self, values: Floats, ts: Floats, offsets: Any) -> list[Change]:
        """Changes in values (n, columns) seen at ts (n,) in records offsets (n,)."""
        changes = []
        rows = zip(values.tolist(), ts.tolist(), offsets.tolist(), strict=True)
        for row, when, offset in rows:
            self.moments.append((when, offset))
            if len(self.moments) > 2 * self.history:
                del self.moments[: self.history]
            for (feature, statistic), track, value in zip(self.columns, self.tracks, row, strict=True):
                found = track.update(value)
                if found is None:
                    continue
                detection, effect = found
                change_ts, change_offset = self.moments[-min(detection.width, len(self.moments))]
                changes.append(
                    Change(
                        feature,
                        statistic,
                        "adwin",
                        detection.before,
                        detection.after,
                        effect,
                        when,
                        change_ts,
                        offset,
                        change_offset,
                    )
                )
        return changes

    def dump(self) -> Any:
        return [[(*track.window.dump(), track.square) for track in self.tracks], self.moments]

    def load(self, state: Any) -> None:
        for track, (blob, total, count, square) in zip(self.tracks, state[0], strict=True):
            track.window.load((blob, total, count))
            track.square = square
        self.moments = [tuple(moment) for moment in state[1]]


class RawDetector(_AdwinBank):
    """ADWIN on each required channel, reading by reading."""

    def __init__(self) -> None:
        self.rows = [index for index, channel in enumerate(CHANNELS) if channel.required]
        super().__init__([(CHANNELS[index].name, "value") for index in self.rows], "raw/1", history=512)

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        """One value a channel and reading."""
        return self.take(readings.values[:, self.rows], readings.ts, readings.offsets)


class PerFeatureDetector(_AdwinBank):
    """ADWIN on each window statistic, whatever the person does."""

    def __init__(self) -> None:
        super().__init__([(item.feature, item.kind) for item in STATISTICS], "per-feature/1", history=512)

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        """One value a statistic and window."""
        return self.take(statistics(windows.values), windows.end, windows.last_offset)
