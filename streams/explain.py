"""An alarm as changes that a person can read: which statistics moved, from what to what, and what explains them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from schemas.activity import ACTIVITIES
from schemas.events import Test
from streams.bouts import Bout
from streams.confirmation import GAIN, ROTATION, TESTED, Evidence, Verdict, matrix, turn_shape
from streams.drift import Change
from streams.measures import COUNT, GRAVITY_MEANS, LOG_COVARIANCE, MEASURED, RATIO, STRENGTHS
from streams.windows import Floats

MOVED: Final = 3.0  # how far a statistic must be off over the bouts to be told beside those that made the alarm
EXPLAINED: Final = 0.8  # share of the misfit that a turn or a gain must take away to be told
LEAST_DEGREES: Final = 10.0
STRENGTH_COLUMNS: Final = frozenset(range(STRENGTHS.start, STRENGTHS.stop))
GRAVITY_COLUMNS: Final = frozenset(range(GRAVITY_MEANS.start, GRAVITY_MEANS.stop))
_STEPS: Final = 12
_UPPER: Final = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 1, 2, 2])


def changes_of(
    verdict: Verdict, found: Sequence[tuple[Bout, Evidence]], ts: float, offset: int, *, hurts: bool
) -> list[Change]:
    """One change for each statistic that moved, the clearest first. found: the bouts that agreed, newest first."""
    scores = np.array([item.scores for _, item in found])
    totals = scores.sum(0) / len(found) ** 0.5
    moved = {column for column in range(TESTED) if abs(totals[column]) >= MOVED} | set(verdict.columns)
    moved = moved or {int(np.abs(totals).argmax())}
    began = found[-1][0]
    estimate: dict[str, float] = {}
    if verdict.gain is not None or moved & {*STRENGTH_COLUMNS, RATIO}:
        factor, explained = gain_factor(found)
        if verdict.gain is not None or explained >= EXPLAINED:
            estimate["gain"] = round(factor, 3)
    if verdict.turn is not None or moved & GRAVITY_COLUMNS:
        degrees, explained = rotation_degrees(found)
        if verdict.turn is not None or (explained >= EXPLAINED and degrees >= LEAST_DEGREES):
            estimate["rotation_deg"] = round(degrees, 1)
    changes = []
    for column in sorted(moved, key=lambda column: -abs(totals[column])):
        # Told for the bout where it shows most, with that activity as the condition.
        bout, item = max(found, key=lambda pair: float(pair[1].scores[column] * np.sign(totals[column])))
        changes.append(
            Change(
                MEASURED[column].feature,
                MEASURED[column].kind,
                _test(column, verdict),
                before=float(item.expected.centre[column]),
                after=float(bout.mean[column]),
                effect=float(abs(totals[column])) / len(found) ** 0.5,
                ts=ts,
                change_ts=began.ts,
                offset=offset,
                change_offset=began.offset,
                activity=ACTIVITIES[bout.activity],
                estimate=estimate or None,
                breadth=len(moved),
                bouts=verdict.bouts,
                hurts=hurts,
            )
        )
    return changes


def _test(column: int, verdict: Verdict) -> Test:
    """What confirmed a statistic: what explains it together with others, else its own test."""
    if verdict.alone:
        return "confidence"
    if verdict.turn is not None and column in ROTATION:
        return "rotation"
    if verdict.gain is not None and column in (*GAIN, TESTED - 1):
        return "gain"
    if column in verdict.columns:
        return "statistic"
    return "rotation" if verdict.turn is not None else "gain" if verdict.gain is not None else "statistic"


def gain_factor(found: Sequence[tuple[Bout, Evidence]]) -> tuple[float, float]:
    """The one factor on all acceleration that explains the bouts best, and the share of the misfit it explains."""
    moved, known, misfit = 0.0, 1e-6, 1e-9
    for bout, item in found:
        alternative = item.expected.gain
        away = (bout.mean - item.expected.centre)[GAIN]
        weight = np.linalg.inv(alternative.fixed + alternative.of_windows / bout.count)
        moved += float(alternative.shape[:, 0] @ weight @ away)
        known += float(alternative.shape[:, 0] @ weight @ alternative.shape[:, 0])
        misfit += float(away @ weight @ away)
    return float(np.exp(moved / known)), moved * moved / known / misfit


def rotation_degrees(found: Sequence[tuple[Bout, Evidence]]) -> tuple[float, float]:
    """The angle of the one rotation that explains the bouts best, and the share of the misfit that it explains.

    Gauss-Newton on the rotation group, weighted.
    """
    parts = []
    for bout, item in found:
        expected = item.expected
        grid = expected.turn.fixed + expected.turn.of_windows / bout.count
        parts.append((np.linalg.inv(grid), bout.mean[ROTATION], expected.centre))

    def away(turn: Floats) -> tuple[Floats, Floats, float]:
        """Gradient, information and misfit at a turn."""
        gradient, information, misfit = np.zeros(3), 1e-6 * np.eye(3), 1e-9
        for weight, mean, centre in parts:
            turned = _turned(centre, turn)
            shape = turn_shape(turned)
            rest = mean - turned[ROTATION]
            gradient += shape.T @ weight @ rest
            information += shape.T @ weight @ shape
            misfit += float(rest @ weight @ rest)
        return gradient, information, misfit

    unturned = best = away(np.eye(3))[2]
    angle = 0.0
    # Far from the start the linear step may lead astray: begin upright and at a right angle about each axis.
    for start in (np.zeros(3), *(np.pi / 2 * np.concatenate([np.eye(3), -np.eye(3)]))):
        turn = _rotation(start)
        for _ in range(_STEPS):
            gradient, information, _ = away(turn)
            turn = _rotation(np.asarray(np.linalg.solve(information, gradient), np.float64)) @ turn
        misfit = away(turn)[2]
        if misfit < best:
            best, angle = misfit, float(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return float(np.degrees(angle)), 1 - best / unturned


def _turned(centre: Floats, turn: Floats) -> Floats:
    """(20,) with gravity and the log covariance turned."""
    turned = np.zeros(COUNT)
    turned[GRAVITY_MEANS] = turn @ centre[GRAVITY_MEANS]
    turned[LOG_COVARIANCE] = (turn @ matrix(centre[LOG_COVARIANCE]) @ turn.T)[_UPPER]
    return turned


def _rotation(vector: Floats) -> Floats:
    """(3, 3) rotation about a vector by its length in rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))
