"""Drift against the device's own past in the same activity, confirmed over several bouts and activities.

Conditioning on the activity takes away what a person does; counting a bout once, however long it lasts, takes away the
autocorrelation; doubting the classifier takes away its mistakes. Together they are what makes an ADWIN's detection mean
something. ADWIN opens a candidate and says since when; `streams.confirmation` decides whether it is an alarm.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from river._river_rust.drift import AdaptiveWindowing

from schemas.activity import ACTIVITIES
from streams.adwin import restore
from streams.bouts import Bout, Candidate, kept
from streams.calibration import Calibration, Population
from streams.conditioning import NOT_JUDGED, Conditioner, Source
from streams.confirmation import (
    BOUTS,
    POLICIES,
    TESTED,
    Evidence,
    Expected,
    Mask,
    Policy,
    PolicyName,
    evidence,
    judge,
    judge_alone,
)
from streams.drift import Change
from streams.explain import changes_of
from streams.measures import COUNT, DEPENDS, WIDTH, completed, measure
from streams.profile import Classifier, Profile
from streams.quality import Degraded, Quality, Refused
from streams.windows import Floats, Readings, Windows

CALIBRATION_S: Final = (
    640.0  # of windows, before a device is judged; with half as many false alarms are five times as many
)
HOP_S: Final = 1.28
CALIBRATING_WINDOWS: Final = 4  # a bout of fewer tells a device's own centre nothing
COUNTED_WINDOWS: Final = 5  # nor is it evidence
DOUBT: Final = 0.05  # an activity with so much probability over a bout may be what it shows
SURE: Final = 0.75  # a bout that has less of its activity's probability is no evidence: most false alarms came of such
CANDIDATE_S: Final = 300.0
COOLDOWN_S: Final = 300.0
RESIDUAL_CLIP: Final = 5.0
ALONE_WINDOWS: Final = 60  # of one bout, from which a device that stays in one activity can be judged
# At how many windows the current bout is looked at; between them nothing much can have changed.
LOOKS: Final = frozenset([5, 6, 8, 11, 15, 20, 27, 36, 48, *range(64, 4000, 32)])
# What else an ADWIN watches: the classifier's confidence, and its errors where there are labels.
CONFIDENCE: Final = TESTED
ERROR: Final = TESTED + 1


class Confirmed:
    """What the detectors of all devices share: the settings, and the reference profile in force.

    policy: how much it takes. source: where the activity comes from. calibration_s: of windows before a device is
    judged.
    """

    def __init__(
        self, policy: PolicyName | Policy = "standard", source: Source = "auto", calibration_s: float = CALIBRATION_S
    ) -> None:
        self.name = policy if isinstance(policy, str) else "custom"
        self.policy = POLICIES[policy] if isinstance(policy, str) else policy
        self.source: Source = source
        self.calibration_windows = round(calibration_s / HOP_S)
        self.profile = ""  # what it is known by; empty without one
        self.population = Population(None)
        self.classifier: Classifier | None = None
        self._next: tuple[str, Profile] | None = None

    def adopt(self, name: str, profile: Profile) -> None:
        """Use this profile from the next windows that are measured on. May be called by another thread."""
        self._next = (name, profile)

    def measure(self, values: Floats) -> Floats:
        """(n, WIDTH + 6): measures, and the probability of each activity."""
        if self._next is not None:
            (self.profile, profile), self._next = self._next, None
            self.population = Population(profile)
            self.classifier = Classifier(profile.classifier) if profile.classifier is not None else None
        whole = completed(values)
        measures = measure(whole)
        if self.classifier is None:
            believed = np.zeros((len(measures), len(ACTIVITIES)))
        else:
            believed = self.classifier.probabilities(whole)
        return np.concatenate([measures, believed], axis=1)

    def __call__(self) -> ConfirmedDetector:
        """A fresh detector of one device."""
        return ConfirmedDetector(self)


class ConfirmedDetector:
    """One device's statistics against its own past in the same activity."""

    def __init__(self, kind: Confirmed) -> None:
        self.kind = kind
        self.config = f"confirmed/5/{kind.name}/{kind.source}/{kind.calibration_windows}"
        self.profile = kind.profile
        self.index = -1  # of the last window
        self.last_alarm: float | None = None
        self.epoch: int | None = None  # the record since which it is calibrated, and judged
        self.quality = Quality()
        self.conditioner = Conditioner(kind.source)
        self._begin()

    def _begin(self) -> None:
        """Calibrate from here on: what the device shows now is its normal until it changes."""
        self.calibrated = 0  # windows
        self.since = self.index + 1  # first window that is judged
        self.calibration = self._uncalibrated()
        self._watch()

    def _uncalibrated(self) -> Calibration:
        return Calibration(self.kind.population, drifted=self.last_alarm is not None)

    def _watch(self) -> None:
        """Suspect nothing."""
        self.bouts: list[Bout] = []
        self.candidates: dict[int, Candidate] = {}
        self.adwins = [_adwin(column) for column in range(ERROR + 1)]

    def _rebase(self) -> None:
        """Another profile is in force. What the device has shown stays known; what was suspected is not."""
        learned = self.calibration.learned
        self.profile = self.kind.profile
        self.calibration = self._uncalibrated()
        self.calibration.learned = learned
        if self.calibrated >= self.kind.calibration_windows:
            self.since = self.index + 1
        self._watch()

    def observe(self, readings: Readings, windows: Windows, refused: Sequence[Refused] = ()) -> list[Change | Degraded]:
        """Alarms at the windows that confirm them, one Change for each statistic that moved; and faults."""
        if self.profile != self.kind.profile:
            self._rebase()
        faults, broken = self.quality.observe(windows, refused)
        found: list[Change | Degraded] = list(faults)
        if not len(windows):
            return found
        assert windows.measures is not None
        if self.epoch is None:
            self.epoch = int(windows.first_offset[0])
        codes, labelled, believed, gaps = self.conditioner.activities(windows, windows.measures[:, WIDTH:])
        frozen = None
        if broken is not None and broken.any():
            frozen = (broken @ DEPENDS.T) > 0
            # Its activity is not to be trusted either, unless a label says so.
            judged = (~broken.any(1) | np.array(labelled)).tolist()
            codes = [code if sure else NOT_JUDGED for code, sure in zip(codes, judged, strict=True)]
        at: int = 0
        changes: list[Change] = []
        while at < len(codes):
            end = at + 1
            while (
                end < len(codes)
                and codes[end] == codes[at]
                and labelled[end] == labelled[at]
                and not gaps[end]
                and (frozen is None or (frozen[end] == frozen[at]).all())
            ):
                end += 1
            if gaps[at] or codes[at] == NOT_JUDGED:
                self._close()
            if codes[at] == NOT_JUDGED:
                at = end
                continue
            while at < end:
                still = None if frozen is None else frozen[at]
                at = self._advance(windows, believed, still, codes[at], at, end, changes, labelled=labelled[at])
        found += changes
        return sorted(found, key=lambda item: item.offset) if faults and changes else found

    def _advance(
        self,
        windows: Windows,
        believed: Floats,
        frozen: Mask | None,
        activity: int,
        at: int,
        end: int,
        changes: list[Change],
        *,
        labelled: bool,
    ) -> int:
        """Take windows at ≤ i < end of one activity in; the first one that is left, after an alarm or calibration."""
        assert windows.measures is not None
        bout = self.bouts[-1] if self.bouts else None
        if bout is None or bout.closed or bout.activity != activity:
            self._close()
            bout = Bout(activity, self.index + 1, float(windows.start[at]), int(windows.first_offset[at]))
            self.bouts = [*kept(self.bouts, COUNTED_WINDOWS, BOUTS), bout]
        if self.calibrated < self.kind.calibration_windows:
            end = min(end, at + self.kind.calibration_windows - self.calibrated)
        rows = slice(at, end)
        statistics = windows.measures[rows, :COUNT]
        if frozen is not None:
            bout.frozen = bout.frozen | frozen
        totals, beliefs = bout.running(statistics, believed[rows])
        first, seen, count = self.index + 1, bout.seen, end - at
        if self.calibrated < self.kind.calibration_windows:
            self.calibrated += count
            bout.reach(seen + count, totals[-1], beliefs[-1])
            self.index += count
            self.since = self.index + 1
            return end
        expected = self.calibration.expected(activity)
        flagged = self._update(windows, expected, frozen, activity, rows, labelled=labelled)
        for number in range(count):
            ts = float(windows.end[at + number])
            for column, start in flagged.get(number, ()):
                known = self.candidates.get(column)
                self.candidates[column] = Candidate(min(start, known.start) if known else start, ts)
            if not self.candidates or not (seen + number in LOOKS or seen + number == 0):
                continue
            self._forget_old(ts)
            if not self.candidates:
                continue
            bout.reach(seen + number + 1, totals[number], beliefs[number])
            alarm = self._judge(ts, int(windows.last_offset[at + number]))
            if alarm:
                changes += alarm
                self.index = first + number
                self.last_alarm, self.epoch = ts, alarm[0].offset
                self._begin()
                return at + number + 1
        bout.reach(seen + count, totals[-1], beliefs[-1])
        self.index += count
        return end

    def _update(
        self,
        windows: Windows,
        expected: Expected | None,
        frozen: Mask | None,
        activity: int,
        rows: slice,
        *,
        labelled: bool,
    ) -> dict[int, list[tuple[int, int]]]:
        """Feed the ADWINs; by window, the columns that it flags, with the window since when."""
        assert windows.measures is not None
        flagged: dict[int, list[tuple[int, int]]] = {}
        if rows.stop - rows.start == 1:
            return self._update_one(windows, expected, frozen, activity, rows.start, labelled=labelled)
        columns: list[tuple[int, Floats]] = []
        if expected is not None:
            residuals = (windows.measures[rows, :TESTED] - expected.centre[:TESTED]) / expected.window_sd
            residuals = np.maximum(np.minimum(residuals, RESIDUAL_CLIP), -RESIDUAL_CLIP)
            columns += [
                (column, residual)
                for column, residual in enumerate(residuals.T)
                if frozen is None or not frozen[column]
            ]
        if self.kind.classifier is not None:
            probabilities = windows.measures[rows, WIDTH:]
            columns.append((CONFIDENCE, probabilities.max(1)))
            if labelled:
                columns.append((ERROR, (probabilities.argmax(1) != activity).astype(np.float64)))
        for column, series in columns:
            left = iter(series.tolist())
            length = len(series)
            while True in map(self.adwins[column].update, left):
                number = length - left.__length_hint__() - 1
                flagged.setdefault(number, []).append((column, self._flag(column, number)))
        return flagged

    def _update_one(
        self,
        windows: Windows,
        expected: Expected | None,
        frozen: Mask | None,
        activity: int,
        row: int,
        *,
        labelled: bool,
    ) -> dict[int, list[tuple[int, int]]]:
        """The same for one window, as mostly comes: with plain numbers, in a fraction of the time."""
        assert windows.measures is not None
        measures, adwins = windows.measures[row].tolist(), self.adwins
        flagged = []
        if expected is not None:
            for column, (value, (centre, sd), adwin) in enumerate(
                zip(measures, expected.numbers, adwins, strict=False)
            ):
                if frozen is not None and frozen[column]:
                    continue
                residual = (value - centre) / sd
                if residual > RESIDUAL_CLIP:
                    residual = RESIDUAL_CLIP
                elif residual < -RESIDUAL_CLIP:
                    residual = -RESIDUAL_CLIP
                if adwin.update(residual):
                    flagged.append((column, self._flag(column, 0)))
        if self.kind.classifier is not None:
            probabilities = measures[WIDTH:]
            most = max(probabilities)
            if adwins[CONFIDENCE].update(most):
                flagged.append((CONFIDENCE, self._flag(CONFIDENCE, 0)))
            if labelled and adwins[ERROR].update(float(probabilities.index(most) != activity)):
                flagged.append((ERROR, self._flag(ERROR, 0)))
        return {0: flagged} if flagged else {}

    def _flag(self, column: int, number: int) -> int:
        """An ADWIN that has fired begins anew; the window, of all, since which the mean has been another."""
        adwin, self.adwins[column] = self.adwins[column], _adwin(column)
        # ADWIN looks every other value and cuts between buckets: it is up to three windows late.
        return max(self.since, self.index + 1 + number - int(adwin.get_width()) + 1 - 3)

    def _forget_old(self, ts: float) -> None:
        if self.last_alarm is not None and 0 <= ts - self.last_alarm < COOLDOWN_S:
            self.candidates.clear()
            return
        self.candidates = {
            column: candidate for column, candidate in self.candidates.items() if ts - candidate.ts <= CANDIDATE_S
        }

    def _close(self) -> None:
        """The current bout is over. If it began while the device was calibrated, it calibrates."""
        if not self.bouts or self.bouts[-1].closed:
            return
        bout = self.bouts[-1]
        bout.closed = True
        if bout.index < self.since and bout.count >= CALIBRATING_WINDOWS and not bout.frozen.any():
            self.calibration.take(bout.activity, bout.mean)
            for other in self.bouts:
                other.evidence = None

    def _judge(self, ts: float, offset: int) -> list[Change]:
        """The alarm, if the bouts since the candidates' changes make one."""
        starts = {column: candidate.start for column, candidate in self.candidates.items() if column < TESTED}
        alone = CONFIDENCE in self.candidates and len({bout.activity for bout in self.bouts}) == 1
        if not starts and not alone:
            return []
        earliest = min(starts.values(), default=self.index)
        found: list[tuple[Bout, Evidence]] = []
        for bout in reversed(self.bouts):
            if bout.count < COUNTED_WINDOWS or (bout.index < earliest - 2 and not alone):
                continue
            if bout.evidence is None:
                bout.evidence = self._evidence(bout)
            if bout.evidence is not None:
                found.append((bout, bout.evidence))
            if len(found) == BOUTS:
                break
        if not found:
            return []
        if alone and found[0][0].count >= ALONE_WINDOWS:
            verdict = judge_alone(found[0][1], self.kind.policy)
        else:
            indices = [bout.index for bout, _ in found]
            since = {column: len(indices) - bisect_left(indices[::-1], start - 2) for column, start in starts.items()}
            activities = np.array([bout.activity for bout, _ in found])
            verdict = judge([item for _, item in found], activities, since, self.kind.policy)
        if verdict is None:
            return []
        hurts = CONFIDENCE in self.candidates or ERROR in self.candidates
        alarm = changes_of(verdict, found[: verdict.bouts], ts, offset, hurts=hurts)
        return [replace(change, epoch=self.epoch) for change in alarm]

    def _evidence(self, bout: Bout) -> Evidence | None:
        """What a bout says, on the doubt that it may show another activity: the one that makes it least surprising.

        None where the doubt is too large, or nothing is known of what it may be.
        """
        if bout.believed[bout.activity] < SURE * bout.seen:
            return None
        found: list[Evidence] = []
        likely = np.flatnonzero(bout.believed > DOUBT * bout.seen).tolist()
        for activity in dict.fromkeys([bout.activity, *likely]):
            expected = self.calibration.expected(activity)
            if expected is not None:
                found.append(evidence(bout.mean, bout.count, expected, self.kind.policy, bout.frozen))
        return min(found, key=lambda item: item.surprise, default=None)

    def dump(self) -> Any:
        """State as plain values."""
        return [
            self.profile,
            self.index,
            self.last_alarm,
            self.epoch,
            self.calibrated,
            self.since,
            self.quality.dump(),
            self.conditioner.dump(),
            self.calibration.dump(),
            [bout.dump() for bout in self.bouts],
            [[column, candidate.start, candidate.ts] for column, candidate in self.candidates.items()],
            [adwin.__getstate__() for adwin in self.adwins],
        ]

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        (self.profile, self.index, self.last_alarm, self.epoch, self.calibrated, self.since) = state[:6]
        quality, conditioner, calibration, bouts, candidates, adwins = state[6:]
        self.quality.load(quality)
        self.conditioner.load(conditioner)
        self.calibration = self._uncalibrated()
        self.calibration.load(calibration)
        self.bouts = [Bout.load(bout) for bout in bouts]
        self.candidates = {column: Candidate(start, ts) for column, start, ts in candidates}
        for adwin, blob in zip(self.adwins, adwins, strict=True):
            restore(adwin, blob)


def _adwin(column: int) -> AdaptiveWindowing:
    """For a statistic or the model's confidence. Statistics: to be suspicious is cheap; the model: to be sure."""
    delta = 0.05 if column < TESTED else 0.002
    return AdaptiveWindowing(delta=delta, clock=2, grace_period=16)
