"""Drift against the device's own past in the same activity, confirmed over several bouts and activities.

Conditioning on the activity takes away what a person does; counting a bout once, however long it lasts, takes away
the autocorrelation. Both are what makes an ADWIN's detection mean something. ADWIN opens a candidate and says since
when; `streams.confirmation` decides whether it is an alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np
from river.drift import ADWIN

from schemas.activity import ACTIVITIES
from streams.calibration import Calibration, Learned, Population
from streams.confirmation import (
    BOUTS,
    TESTED,
    Evidence,
    Policy,
    evidence,
    jointly_moved,
    statistic_moved,
)
from streams.drift import Change
from streams.measures import COUNT, MEASURED, RATIO, WIDTH
from streams.profile import Classifier, Profile
from streams.windows import MAX_GAP_S, NO_LABEL, Floats, Ints, Readings, Windows

Source = Literal["auto", "label", "model"]

CALIBRATION_WINDOWS: Final = 500  # of a device before it is judged: 640 s
COUNTED_WINDOWS: Final = 5  # a bout of fewer says nothing
CALIBRATING_WINDOWS: Final = 4  # ... but may calibrate
SMOOTHED_WINDOWS: Final = 3  # over which the classifier's probabilities are averaged
CANDIDATE_S: Final = 300.0
COOLDOWN_S: Final = 300.0
RESIDUAL_CLIP: Final = 5.0
# At how many windows the current bout is looked at; between them nothing much can have changed.
LOOKS: Final = frozenset([5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, *range(60, 3000, 20)])
UNLABELLED_WINDOWS: Final = 24  # after so many, a device no longer sends labels


@dataclass
class _Bout:
    """A run of windows in one activity; its first window is not counted, as it straddles the change of activity."""

    activity: int
    index: int
    ts: float
    offset: int
    seen: int
    total: Floats
    probs: Floats
    evidence: Evidence | None = None

    @property
    def count(self) -> int:
        return self.seen - 1

    @property
    def mean(self) -> Floats:
        return self.total / self.count


@dataclass
class _Candidate:
    """A statistic that an ADWIN has flagged: since which window, and when it was last flagged."""

    start: int
    ts: float


def conditioned(profile: Profile | None) -> Any:
    return None


class ConfirmedDetector:
    """One device's statistics against its own past in the same activity, confirmed over bouts and activities."""

    def __init__(
        self,
        profile: Profile | None = None,
        population: Population | None = None,
        policy: Policy = Policy(),
        source: Source = "auto",
        calibration_windows: int = CALIBRATION_WINDOWS,
        delta: float = 0.05,
        enough: int = 0,
        doubt: float = 1.0,
        scan: bool = False,
    ) -> None:
        self.population = population or Population(profile)
        self.policy, self.source = policy, source
        self.thresholds = policy.thresholds
        self.calibration_windows = calibration_windows
        self.delta = delta
        self.enough = enough
        self.doubt = doubt
        self.scan = scan
        self.index = -1
        self.last_alarm: float | None = None
        self.recent: Floats = np.empty((0, len(ACTIVITIES)))
        self.last_end = -np.inf
        self.labelled, self.unlabelled = False, 0
        self._begin()

    def _begin(self) -> None:
        self.learned_windows = 0
        self.since = 0
        self.calibration = Calibration(self.population)
        self.bouts: list[_Bout] = []
        self.candidates: dict[int, _Candidate] = {}
        self.adwins = [self._adwin() for _ in range(TESTED)]
        self.sd: dict[int, Floats] = {}

    def _adwin(self) -> Any:
        return ADWIN(delta=self.delta, clock=2, grace_period=16)._helper

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        codes = self._activities(windows)
        changes: list[Change] = []
        n = len(codes)
        at = 0
        while at < n:
            end = at + 1
            while end < n and codes[end] == codes[at]:
                end += 1
            if codes[at] == -2:
                at = end
                continue
            while at < end:
                at = self._advance(windows, int(codes[at]), at, end, changes)
        return changes

    def _activities(self, windows: Windows) -> Ints:
        """code, or -2 for a window that is not judged."""
        n = len(windows)
        P = windows.measures[:, WIDTH:]
        k = len(self.recent)
        allP = np.concatenate([self.recent, P])
        starts = windows.start; ends = windows.end
        prev = np.concatenate([[self.last_end], ends[:-1]])
        gap = starts - prev > MAX_GAP_S
        codes = np.empty(n, np.int64)
        first = 0  # first usable row in allP
        if gap.any() or k < 2:
            for i in range(n):
                if gap[i]:
                    first = k + i
                lo = max(first, k + i - 2)
                codes[i] = int(allP[lo : k + i + 1].sum(0).argmax())
        else:
            codes = (allP[2:] + allP[1:-1] + allP[:-2]).argmax(1)
        self.recent = allP[max(first, k + n - 2):]
        self.last_end = float(ends[-1]) if n else self.last_end
        if self.source != "model":
            for i, label in enumerate(windows.labels.tolist()):
                self.unlabelled = self.unlabelled + 1 if label == NO_LABEL else 0
                self.labelled = label != NO_LABEL or (self.labelled and self.unlabelled <= UNLABELLED_WINDOWS)
                if label != NO_LABEL:
                    codes[i] = label
                elif self.labelled or self.source == "label":
                    codes[i] = -2
        return codes

    def _advance(self, windows: Windows, activity: int, at: int, end: int, changes: list[Change]) -> int:
        """Rows at..end of one activity; returns the next row to do."""
        bout = self.bouts[-1] if self.bouts else None
        if bout is None or bout.activity != activity:
            self._close(bout)
            bout = _Bout(activity, self.index + 1, float(windows.start[at]), int(windows.first_offset[at]), 0, np.zeros(COUNT), np.zeros(6))
            kept = [item for item in self.bouts if item.count >= COUNTED_WINDOWS][-BOUTS:]
            self.bouts = [*kept, bout]
        X = windows.measures[at:end, :COUNT]
        m = end - at
        # running sums, first window of a bout not counted
        Y = X if bout.seen else np.concatenate([np.zeros((1, COUNT)), X[1:]])
        sums = np.cumsum(np.concatenate([bout.total[None], Y]), axis=0)[1:]
        Pr = windows.measures[at:end, WIDTH:]; PS = np.cumsum(np.concatenate([bout.probs[None], Pr]), axis=0)[1:]
        seen0 = bout.seen
        index0 = self.index
        if self.learned_windows < self.calibration_windows:
            m = min(m, self.calibration_windows - self.learned_windows)
            self.learned_windows += m
            bout.seen += m; bout.total = sums[m-1]; bout.probs = PS[m-1]; self.index += m
            self.since = self.index + 1
            if self.learned_windows >= self.calibration_windows:
                pass
            return at + m
        expected = self.calibration.expected(activity)
        detections = {}
        if expected is not None:
            sd = self.sd.get(activity)
            if sd is None:
                sd = self.sd[activity] = expected.window_sd
            R = np.clip((X[:, :TESTED] - expected.centre[:TESTED]) / sd, -RESIDUAL_CLIP, RESIDUAL_CLIP)
            cols = R.T.tolist()
            for j in range(TESTED):
                col = cols[j]
                i = 0
                while i < m:
                    helper = self.adwins[j]
                    hit = False
                    for hit in map(helper.update, col[i:] if i else col):
                        i += 1
                        if hit:
                            break
                    if hit:
                        width = int(helper.get_width())
                        start = max(self.since, index0 + i - width + 1 - 3)
                        detections.setdefault(i - 1, []).append((j, start))
                        self.adwins[j] = self._adwin()
        for i in range(m):
            ts = float(windows.end[at + i])
            for j, start in detections.get(i, ()):
                known = self.candidates.get(j)
                self.candidates[j] = _Candidate(min(start, known.start) if known else start, ts)
            if not self.candidates:
                continue
            if self.last_alarm is not None and ts - self.last_alarm < COOLDOWN_S:
                self.candidates.clear()
                continue
            count = seen0 + i
            if (count in LOOKS) or i == 0 and not seen0:
                self.candidates = {j: c for j, c in self.candidates.items() if ts - c.ts <= CANDIDATE_S}
                if not self.candidates:
                    continue
                bout.seen = seen0 + i + 1; bout.total = sums[i]; bout.probs = PS[i]; bout.evidence = None
                found = self._confirm(ts, int(windows.last_offset[at + i]), expected)
                if found:
                    changes += found
                    self.last_alarm = ts
                    self.index = index0 + i + 1
                    self._begin()
                    return at + i + 1
        bout.seen = seen0 + m; bout.total = sums[m - 1]; bout.probs = PS[m-1]; bout.evidence = None
        self.index = index0 + m
        return end

    def _close(self, bout: _Bout | None) -> None:
        """A finished bout calibrates."""
        if bout is None:
            return
        if bout.count < CALIBRATING_WINDOWS:
            return
        # bouts that began while calibrating
        if bout.index < self.since or (self.enough and self.calibration.bouts(bout.activity) < self.enough and not self.candidates):
            self.calibration.take(bout.activity, bout.mean)
            self.sd.clear()
            for item in self.bouts:
                item.evidence = None

    def _confirm(self, ts: float, offset: int, expected: Any) -> list[Change]:
        earliest = min(c.start for c in self.candidates.values())
        bouts = [b for b in reversed(self.bouts) if b.count >= COUNTED_WINDOWS and b.index >= earliest - 2][:BOUTS]
        if len(bouts) < 2:
            return []
        found, used = [], []
        for b in bouts:
            if b.evidence is None:
                e = self.calibration.expected(b.activity)
                if e is None:
                    continue
                b.evidence = evidence(b.mean, b.count, e, self.policy)
                if self.doubt < 1:
                    pm = b.probs / b.seen
                    best = float(np.square(b.evidence.scores).sum())
                    for a in np.flatnonzero(pm > self.doubt).tolist():
                        if a == b.activity or (e2 := self.calibration.expected(a)) is None:
                            continue
                        other = evidence(b.mean, b.count, e2, self.policy)
                        d2 = float(np.square(other.scores).sum())
                        if d2 < best:
                            best, b.evidence = d2, other
            found.append(b.evidence); used.append(b)
        if len(found) < 2:
            return []
        acts = np.array([b.activity for b in used]); starts = np.array([b.index for b in used])
        Z = np.array([e.scores for e in found])
        p = self.policy
        hits = []
        for j, c in self.candidates.items():
            if j == RATIO:
                continue
            k = int((starts >= c.start - 2).sum())
            if k >= 2 and abs(Z[:k, j].sum()) > self.thresholds[j] * k**0.5 and statistic_moved(Z[:k, j], acts[:k], self.thresholds[j], p.without_statistic):
                hits.append(j)
        if statistic_moved(Z[:, RATIO], acts, self.thresholds[RATIO], p.without_statistic):
            hits.append(RATIO)
        g = jointly_moved(found, acts, p.gain**2, p.without_gain, gain=True)
        r = jointly_moved(found, acts, p.rotation, p.without_rotation, gain=False)
        if self.scan:
            for k in range(len(found) - 1, 1, -1):
                if g is None:
                    g = jointly_moved(found[:k], acts[:k], p.gain**2, p.without_gain, gain=True)
                if r is None:
                    r = jointly_moved(found[:k], acts[:k], p.rotation, p.without_rotation, gain=False)
        if not hits and g is None and r is None:
            return []
        tests = hits + (["gain"] if g is not None else []) + (["rotation"] if r is not None else [])
        self.last_tests = tests
        b = used[-1]
        T = np.abs(Z.sum(0)) / len(Z) ** .5
        j = int(T.argmax())
        return [Change(MEASURED[j].feature, str(tests), "statistic", 0., 0., float(T[j]), ts, b.ts, offset, b.offset, ACTIVITIES[used[0].activity])]
