"""Drift against the device's own past in the same activity, confirmed over several stretches of activity.

Conditioning on the activity takes away what a person does; counting a stretch once, however long it lasts, takes away
the autocorrelation. Both are what makes an ADWIN's detection mean something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from schemas.activity import ACTIVITIES
from streams.adwin import AdaptiveWindow
from streams.drift import Change
from streams.statistics import STATISTICS, statistics
from streams.windows import NO_LABEL, Floats, Readings, Windows

# A stretch is a run of windows in one activity, at most 30 s of it: long activities count as several.
STRETCH_WINDOWS: Final = 24
COUNTED_WINDOWS: Final = 5  # a stretch of fewer says nothing
CALIBRATION_STRETCHES: Final = 2  # before an activity can be judged
REFERENCE_STRETCHES: Final = 8  # after which its reference stays as it is
PRIOR_STRETCHES: Final = 4  # weight of STATISTICS' spread against the device's own
RECENT_STRETCHES: Final = 8
CANDIDATE_S: Final = 300.0
COOLDOWN_S: Final = 300.0
CONFIRM: Final = 5.5
CLIP: Final = 8.0
RESIDUAL_CLIP: Final = 5.0


class _Reference(msgspec.Struct):
    """What one activity looks like on this device. Means and squares over its calibration stretches, (10,) each."""

    stretches: int
    mean: list[float]
    between: list[float]  # sum of squared deviations of stretch means
    within: list[float]  # mean variance of windows inside a stretch

    def take(self, mean: Floats, variance: Floats) -> None:
        """Learn one more stretch (Welford)."""
        self.stretches += 1
        old = np.array(self.mean)
        new = old + (mean - old) / self.stretches
        self.between = (np.array(self.between) + (mean - old) * (mean - new)).tolist()
        self.within = (np.array(self.within) + (variance - np.array(self.within)) / self.stretches).tolist()
        self.mean = new.tolist()

    def scale(self, windows: int) -> Floats:
        """(10,) standard deviation of the mean of so many windows of a stretch about the reference.

        Between stretches: the device's own spread shrunk towards the prior; within: twice the variance of a mean of n
        windows, because neighbours overlap by half; and the reference's own uncertainty.
        """
        between = (PRIOR_STRETCHES * _SPREAD**2 + np.array(self.between)) / (
            PRIOR_STRETCHES + max(self.stretches - 1, 0)
        )
        variance: Floats = between * (1 + 1 / self.stretches) + 2 * np.array(self.within) / windows
        return np.sqrt(variance)


class _Stretch(msgspec.Struct):
    """A run of windows in one activity; its first window is not counted, as it straddles the change of activity."""

    activity: int
    first_index: int
    first_ts: float
    first_offset: int
    seen: int
    count: int
    total: list[float]
    square: list[float]

    def take(self, row: Floats) -> None:
        self.seen += 1
        if self.seen == 1:
            return
        self.count += 1
        self.total = (np.array(self.total) + row).tolist()
        self.square = (np.array(self.square) + row * row).tolist()

    @property
    def mean(self) -> Floats:
        return np.array(self.total) / self.count

    @property
    def variance(self) -> Floats:
        return np.maximum(np.array(self.square) / self.count - self.mean**2, 0.0)


class _Candidate(msgspec.Struct):
    """A statistic that an ADWIN has flagged: since which window, and when it was last flagged."""

    start: int
    flagged_ts: float


class _ConfirmedState(msgspec.Struct):
    index: int = 0
    labelled: bool = False
    unlabelled: int = 0  # windows in a row
    references: dict[int, _Reference] = msgspec.field(default_factory=dict)
    stretches: list[_Stretch] = msgspec.field(default_factory=list)
    candidates: dict[int, _Candidate] = msgspec.field(default_factory=dict)
    last_alarm_ts: float | None = None
    adwins: list[tuple[bytes, float, int]] = msgspec.field(default_factory=list)


_SPREAD: Final = np.array([item.spread for item in STATISTICS])
_ZEROS: Final = [0.0] * len(STATISTICS)


class ConfirmedDetector:
    """Window statistics against the device's own past in the same activity, confirmed over several stretches."""

    config = "confirmed/2"
    measure: ClassVar[Callable[[Floats], Floats] | None] = staticmethod(statistics)

    def __init__(self) -> None:
        self.state = _ConfirmedState()
        self.adwins = self._fresh_adwins()

    @staticmethod
    def _fresh_adwins() -> list[AdaptiveWindow]:
        return [AdaptiveWindow(delta=0.05, clock=2, grace_period=16) for _ in STATISTICS]

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        """Alarms at the windows that confirm them; one Change for each statistic that moved."""
        assert windows.measures is not None
        changes: list[Change] = []
        for row, label, end, last_offset, start, first_offset in zip(
            windows.measures,
            windows.labels.tolist(),
            windows.end.tolist(),
            windows.last_offset.tolist(),
            windows.start.tolist(),
            windows.first_offset.tolist(),
            strict=True,
        ):
            if self._straddles(label):
                continue
            self.state.index += 1  # an alarm replaces the state
            self._join_stretch(row, label, start, first_offset)
            changes += self._judge(row, label, end, last_offset)
        return changes

    def _straddles(self, label: int) -> bool:
        """Whether a window is without a label because it holds two, not because the device sends none.

        Two windows hold the same change; a device that goes on without labels no longer sends them, and skipping its
        windows for ever would be never to judge it again.
        """
        state = self.state
        state.unlabelled = state.unlabelled + 1 if label == NO_LABEL else 0
        state.labelled = label != NO_LABEL or (state.labelled and state.unlabelled <= STRETCH_WINDOWS)
        return label == NO_LABEL and state.labelled

    def _join_stretch(self, row: Floats, activity: int, start: float, first_offset: int) -> None:
        state = self.state
        current = state.stretches[-1] if state.stretches else None
        if current is None or current.activity != activity or current.seen >= STRETCH_WINDOWS:
            self._close(current)
            kept = [stretch for stretch in state.stretches if stretch.count >= COUNTED_WINDOWS][-RECENT_STRETCHES:]
            current = _Stretch(activity, state.index, start, first_offset, 0, 0, _ZEROS, _ZEROS)
            state.stretches = [*kept, current]
        current.take(row)

    def _close(self, stretch: _Stretch | None) -> None:
        """A finished stretch calibrates its activity, unless something is suspected."""
        state = self.state
        if stretch is None or stretch.count < COUNTED_WINDOWS or state.candidates:
            return
        reference = state.references.setdefault(stretch.activity, _Reference(0, _ZEROS, _ZEROS, _ZEROS))
        if reference.stretches < REFERENCE_STRETCHES:
            reference.take(stretch.mean, stretch.variance)

    def _judge(self, row: Floats, activity: int, ts: float, offset: int) -> list[Change]:
        state = self.state
        reference = state.references.get(activity)
        if reference is None or reference.stretches < CALIBRATION_STRETCHES:
            return []
        residual = np.clip((row - reference.mean) / reference.scale(1), -RESIDUAL_CLIP, RESIDUAL_CLIP)
        for column, (adwin, value) in enumerate(zip(self.adwins, residual.tolist(), strict=True)):
            detection = adwin.update(value)
            if detection is not None:
                start = max(1, state.index - detection.width + 1 - 3)
                known = state.candidates.get(column)
                state.candidates[column] = _Candidate(min(start, known.start) if known else start, ts)
        if state.last_alarm_ts is not None and ts - state.last_alarm_ts < COOLDOWN_S:
            state.candidates.clear()
            return []
        state.candidates = {
            column: candidate
            for column, candidate in state.candidates.items()
            if ts - candidate.flagged_ts <= CANDIDATE_S
        }
        if not state.candidates:
            return []
        return self._confirm(ts, offset)

    def _confirm(self, ts: float, offset: int) -> list[Change]:
        """Each candidate whose statistic is off in at least two stretches since, by CONFIRM standard deviations in all.

        Every statistic is then looked at, candidate or not, so that all that moved with it are reported together.
        """
        state = self.state
        judged = [
            stretch
            for stretch in state.stretches
            if stretch.count >= COUNTED_WINDOWS
            and (known := state.references.get(stretch.activity)) is not None
            and known.stretches >= CALIBRATION_STRETCHES
        ]
        scores = {
            id(stretch): np.clip(
                (stretch.mean - state.references[stretch.activity].mean)
                / state.references[stretch.activity].scale(stretch.count),
                -CLIP,
                CLIP,
            )
            for stretch in judged
        }

        def total(column: int, start: int) -> tuple[float, list[_Stretch]]:
            since = [stretch for stretch in judged if stretch.first_index >= start - 2][-RECENT_STRETCHES:]
            if len(since) < 2:
                return 0.0, since
            return float(sum(scores[id(stretch)][column] for stretch in since) / len(since) ** 0.5), since

        starts = [
            candidate.start
            for column, candidate in state.candidates.items()
            if abs(total(column, candidate.start)[0]) > CONFIRM
        ]
        if not starts:
            return []
        changes = []
        for column, statistic in enumerate(STATISTICS):
            score, since = total(column, min(starts))
            if abs(score) <= CONFIRM:
                continue
            # Reported for the stretch where it shows most, with that activity as the condition.
            shown = max(since, key=lambda stretch: abs(float(scores[id(stretch)][column])))
            changes.append(
                Change(
                    statistic.feature,
                    statistic.kind,
                    "statistic",
                    before=state.references[shown.activity].mean[column],
                    after=float(shown.mean[column]),
                    effect=abs(score) / len(since) ** 0.5,
                    ts=ts,
                    change_ts=since[0].first_ts,
                    offset=offset,
                    change_offset=since[0].first_offset,
                    activity=None if shown.activity == NO_LABEL else ACTIVITIES[shown.activity],
                )
            )
        self._begin_anew(ts)
        return changes

    def _begin_anew(self, ts: float) -> None:
        """After an alarm the device is calibrated again: what it shows now is its new normal until it changes."""
        state = self.state
        self.state = _ConfirmedState(state.index, state.labelled, state.unlabelled, last_alarm_ts=ts)
        self.adwins = self._fresh_adwins()

    def dump(self) -> Any:
        """State as plain values."""
        self.state.adwins = [adwin.dump() for adwin in self.adwins]
        return msgspec.to_builtins(self.state, builtin_types=(bytes,))

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        self.state = msgspec.convert(state, _ConfirmedState, strict=False)
        for adwin, saved in zip(self.adwins, self.state.adwins, strict=True):
            adwin.load(saved)
