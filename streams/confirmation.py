"""The tests that make a candidate an alarm: do recent bouts differ from the reference in one consistent way?

Three alternatives: one statistic has moved; the accelerometer's gain has changed; the phone is turned. Each counts a
bout once, however long it lasts, and each must hold without any one activity: what a single activity shows may be a new
way of doing it. Pure functions over a few bouts (the notes of the detector, level 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from streams.measures import GRAVITY_MEANS, LOG_COVARIANCE, RATES, RATIO, STRENGTHS
from streams.windows import Floats, Ints

GAIN: Final = np.r_[STRENGTHS, RATES]
ROTATION: Final = np.r_[GRAVITY_MEANS, LOG_COVARIANCE]
# What has an ADWIN and a test of its own: the ten statistics and the ratio.
TESTED: Final = RATIO + 1
Mask = np.ndarray[Any, np.dtype[np.bool_]]
BOUTS: Final = 8
_GAIN_SHAPE: Final = np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]])
_UPPER: Final = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 1, 2, 2])
# The rotations about x, y and z at angle 0, differentiated.
_GENERATORS: Final = np.array(
    [
        [[0.0, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
    ]
)


PolicyName = Literal["quiet", "standard", "sensitive"]


@dataclass(frozen=True)
class Policy:
    """How much it takes. thresholds: of each of TESTED statistics; gain: of √T; rotation: of T. without_*: what must
    remain when any one activity is left out. inflation: factor on standard deviations, for what the model of a bout
    does not know.
    """

    gravity: float = 8.0
    means: float = 7.5
    strengths: float = 7.0
    ratio: float = 5.0
    gain: float = 4.2
    rotation: float = 30.0
    without_statistic: float = 2.5
    without_gain: float = 1.5
    without_rotation: float = 8.0
    alone: float = 6.0
    inflation: float = 1.2
    clip: float = 8.0

    @cached_property
    def thresholds(self) -> Floats:
        """(TESTED,)."""
        return np.array([self.gravity] * 3 + [self.means] * 3 + [self.strengths] * 4 + [self.ratio])

    def scaled(self, factor: float) -> Policy:
        """All thresholds times factor (the rotation's, a square, times its square)."""
        return replace(
            self,
            gravity=self.gravity * factor,
            means=self.means * factor,
            strengths=self.strengths * factor,
            ratio=self.ratio * factor,
            gain=self.gain * factor,
            rotation=self.rotation * factor**2,
        )


POLICIES: Final[dict[PolicyName, Policy]] = {
    "quiet": Policy().scaled(1.15),
    "standard": Policy(),
    "sensitive": Policy().scaled(0.85),
}


class _Alternative:
    """A linear hypothesis about some statistics: they have all moved along `shape` (d, q) from what is expected.

    shrink: towards no correlation between bouts, for what few bouts cannot tell; clip: what one bout may say at most.
    """

    def __init__(self, columns: Ints, shape: Floats, expected: Expected, shrink: float, clip: float) -> None:
        grid = np.ix_(columns, columns)
        between = expected.between[grid]
        self.columns, self.clip = columns, clip
        self.fixed = (1 - shrink) * between
        self.fixed[np.diag_indices(len(columns))] += shrink * np.diagonal(between) + expected.unsure[columns] + 1e-6
        self.of_windows = 2 * expected.within[grid]
        self.shape = shape
        # Axes on which both covariances are diagonal, so that no bout, of however many windows, needs an inverse.
        root = np.linalg.inv(np.linalg.cholesky(self.fixed))
        self._powers, axes = np.linalg.eigh(root @ self.of_windows @ root.T)
        self._axes = root.T @ axes
        self._along = self._axes.T @ shape

    def weigh(self, away: Floats, windows: int, factor: float) -> tuple[Floats, Floats]:
        """Numerator wHᵀPd (q,) and information HᵀPH (q, q) of a generalised likelihood ratio."""
        precision = 1.0 / (factor * (1.0 + self._powers / windows))
        moved = away[self.columns] @ self._axes
        weighed = precision * moved
        weight = min(1.0, (self.clip / max(float(moved @ weighed), 1e-9)) ** 0.5)
        return weight * (weighed @ self._along), (self._along.T * precision) @ self._along


class Expected:
    """What a bout of one activity should show on this device.

    centre, unsure: (20,) and the variance of the centre; between, within: (20, 20) covariances of bout means and of a
    bout's windows.
    """

    def __init__(self, centre: Floats, unsure: Floats, between: Floats, within: Floats) -> None:
        self.centre, self.unsure, self.between, self.within = centre, unsure, between, within
        self.between_variance = (np.diagonal(between) + unsure)[:TESTED]
        self.within_variance = np.diagonal(within)[:TESTED]
        self.window_sd = np.sqrt(self.between_variance + self.within_variance)

    @cached_property
    def numbers(self) -> list[tuple[float, float]]:
        """Centre and window_sd of the TESTED statistics."""
        return list(zip(self.centre[:TESTED].tolist(), self.window_sd.tolist(), strict=True))

    @cached_property
    def gain(self) -> _Alternative:
        """All acceleration stronger or weaker by one factor, rotation as it was."""
        return _Alternative(GAIN, _GAIN_SHAPE, self, 0.05, 36.0)

    @cached_property
    def turn(self) -> _Alternative:
        """Gravity and acceleration turned together."""
        return _Alternative(ROTATION, turn_shape(self.centre), self, 0.2, 16.0)


@dataclass(slots=True)
class Evidence:
    """What one bout says. scores: (TESTED,) standardised deviations; the rest: numerator and information of the gain
    test (scalars) and of the rotation test ((3,) and (3, 3)). expected: what it was compared with.
    """

    scores: Floats
    gain: float
    gain_information: float
    turn: Floats
    turn_information: Floats
    expected: Expected

    @property
    def surprise(self) -> float:
        """How little the bout looks like what was expected."""
        return float(self.scores @ self.scores)


def evidence(mean: Floats, windows: int, expected: Expected, policy: Policy, frozen: Mask | None = None) -> Evidence:
    """The evidence of a bout whose windows (so many) have this mean (20,). frozen: (20,) what says nothing."""
    away = mean - expected.centre
    factor = policy.inflation**2
    variance = expected.between_variance + 2 / windows * expected.within_variance
    scores = away[:TESTED] / np.sqrt(factor * np.maximum(variance, 1e-4))
    scores = np.maximum(np.minimum(scores, policy.clip), -policy.clip)
    gain, gain_information = expected.gain.weigh(away, windows, factor)
    turn, turn_information = expected.turn.weigh(away, windows, factor)
    if frozen is not None and frozen.any():
        scores[frozen[:TESTED]] = 0.0
        if frozen[GAIN].any():
            gain, gain_information = 0 * gain, 0 * gain_information
        if frozen[ROTATION].any():
            turn, turn_information = 0 * turn, 0 * turn_information
    return Evidence(scores, float(gain[0]), float(gain_information[0, 0]), turn, turn_information, expected)


def turn_shape(centre: Floats) -> Floats:
    """(9, 3): how gravity and the log covariance at centre (20,) move when the phone is turned a little."""
    gravity, log = centre[GRAVITY_MEANS], matrix(centre[LOG_COVARIANCE])
    shape = np.empty((9, 3))
    for column, generator in enumerate(_GENERATORS):
        shape[:3, column] = generator @ gravity
        shape[3:, column] = (generator @ log - log @ generator)[_UPPER]
    return shape


def matrix(upper: Floats) -> Floats:
    """(3, 3) symmetric matrix of its upper triangle (6,)."""
    whole = np.empty((3, 3))
    whole[_UPPER] = upper
    whole[_UPPER[::-1]] = upper
    return whole


@dataclass(frozen=True, slots=True)
class Verdict:
    """An alarm. bouts: how many of the newest bouts agreed. columns: the statistics that moved by their own test.

    gain: estimated log gain; turn: estimated rotation vector; where that test confirmed it. alone: in one activity.
    """

    bouts: int
    columns: tuple[int, ...] = ()
    gain: float | None = None
    turn: Floats | None = None
    alone: bool = False


def judge(found: Sequence[Evidence], activities: Ints, since: Mapping[int, int], policy: Policy) -> Verdict | None:
    """The verdict on the newest k bouts (newest first): their evidence, their activities (k,).

    since: for each statistic that is a candidate, how many of these bouts have come since its change; the ratio and the
    joint tests need no candidate of their own. Each looks at the newest 2 … so many bouts: a change that is dated too
    early would water a drift down. (That found drifts up to a minute earlier, and paid for higher thresholds.)
    """
    if len(found) < 2:
        return None
    counts = np.arange(2, len(found) + 1)
    scores = np.add.accumulate([item.scores for item in found])[1:]
    size = np.abs(scores) / np.sqrt(counts)[:, None]
    over = set(np.flatnonzero(size.max(0) > policy.thresholds).tolist())
    columns: dict[int, int] = {}
    for column, most in {**since, RATIO: len(found)}.items():
        if column not in over:
            continue
        for row in _clearest(size[: max(most - 1, 0), column], policy.thresholds[column]):
            own = [float(item.scores[column]) for item in found[: row + 2]]
            if _agree(own, activities[: row + 2], policy.without_statistic):
                columns[column] = row + 2
                break
    gain, with_gain = _newest(found, activities, policy.gain**2, policy.without_gain, gain=True)
    turn, with_turn = _newest(found, activities, policy.rotation, policy.without_rotation, gain=False)
    most = max([*columns.values(), with_gain, with_turn])
    if not most:
        return None
    return Verdict(most, tuple(columns), None if gain is None else float(gain[0]), turn)


def _clearest(totals: Floats, threshold: float) -> list[int]:
    """Rows over the threshold, the highest first: where the bouts since the change point are taken and no others."""
    rows = np.flatnonzero(totals > threshold)
    return rows[np.argsort(-totals[rows], kind="stable")].tolist() if len(rows) else []


def _agree(scores: Sequence[float], activities: Ints, without: float) -> bool:
    """Whether the scores of bouts point the same way even without any one activity."""
    total = sum(scores)
    for activity in set(activities.tolist()):
        others = [score for score, other in zip(scores, activities.tolist(), strict=True) if other != activity]
        if sum(others) * np.sign(total) <= without * max(len(others), 1) ** 0.5:
            return False
    return True


def _newest(
    found: Sequence[Evidence], activities: Ints, threshold: float, without: float, *, gain: bool
) -> tuple[Floats | None, int]:
    """The joint test's estimate over those of the newest bouts that agree most clearly, and how many; else None, 0."""
    if gain:
        moved = np.array([[item.gain] for item in found])
        known = np.array([[[item.gain_information]] for item in found])
    else:
        moved = np.array([item.turn for item in found])
        known = np.array([item.turn_information for item in found])
    totals, estimates = _ratios(np.add.accumulate(moved)[1:], np.add.accumulate(known)[1:])
    for row in _clearest(totals, threshold):
        newest = slice(row + 2)
        if _agree_jointly(moved[newest], known[newest], activities[newest], estimates[row], without):
            return estimates[row], row + 2
    return None, 0


def _ratios(moved: Floats, known: Floats) -> tuple[Floats, Floats]:
    """(r,) generalised likelihood ratios UᵀJ⁻¹U and (r, q) estimates J⁻¹U of U (r, q) and J (r, q, q)."""
    size = moved.shape[-1]
    if size == 1:
        estimates = moved / (known[..., 0] + 1e-6)
    else:
        solved = np.linalg.solve(known + 1e-6 * np.eye(size), moved[..., None])
        estimates = np.asarray(solved[..., 0], np.float64)
    return np.asarray((moved * estimates).sum(-1)), estimates


def _agree_jointly(moved: Floats, known: Floats, activities: Ints, estimate: Floats, without: float) -> bool:
    """Whether the bouts say the same even without any one activity."""
    for activity in set(activities.tolist()):
        others = activities != activity
        if not others.any():
            return False
        totals, estimates = _ratios(moved[others].sum(0)[None], known[others].sum(0)[None])
        if totals[0] <= without or float(estimates[0] @ estimate) <= 0:
            return False
    return True


def judge_alone(newest: Evidence, policy: Policy) -> Verdict | None:
    """The verdict on a device that stays in one activity, whose long bout no other can second."""
    columns = np.flatnonzero(np.abs(newest.scores) > policy.alone).tolist()
    return Verdict(1, tuple(columns), alone=True) if columns else None
