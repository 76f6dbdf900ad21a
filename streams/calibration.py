"""What one device showed while it was calibrated, and what it should show since: the population's profile, narrowed.

An empirical Bayes estimate (Efron & Morris 1975; the notes of the detector, step 4): a device with few bouts of an
activity is expected to be like people on the whole, one with many like itself. One that has drifted away from them is
expected to be like itself alone, or the same drift would be found again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schemas.activity import ACTIVITIES
from streams.confirmation import Expected
from streams.measures import COUNT, MEASURED
from streams.profile import Profile
from streams.windows import Floats

# Bouts of an activity from which a device alone tells what to expect of it.
ALONE_BOUTS: Final = 2
# Weight, in bouts, of the population's spread between bouts against the device's own, an activity's and over all.
OWN_PRIOR: Final = 4.0
_SPREAD: Final = np.array([item.spread for item in MEASURED])
_WITHIN: Final = 2.0  # without a profile, windows of a bout are taken to spread so many times as wide as bouts
# What stands for a population that nobody has measured: mean, spread between people, and of bouts and windows.
_UNKNOWN: Final = (np.zeros(COUNT), np.ones(COUNT), np.diag(_SPREAD**2), np.diag((_WITHIN * _SPREAD) ** 2))


@dataclass(frozen=True, slots=True)
class Learned:
    """Bouts of one activity: how many, and of their means the sum and the sum of squares, (20,) each."""

    bouts: int
    total: Floats
    square: Floats


class Population:
    """A profile, as arrays: (6, …) by activity code, None for what it does not know."""

    def __init__(self, profile: Profile | None) -> None:
        self.known = profile is not None
        self.activities: list[tuple[Floats, Floats, Floats, Floats] | None] = [None] * len(ACTIVITIES)
        for name, reference in profile.activities.items() if profile else ():
            self.activities[ACTIVITIES.index(name)] = (
                np.array(reference.mean),
                np.array(reference.people),
                np.array(reference.between),
                np.array(reference.within),
            )


class Calibration:
    """A device's own bouts against a population's.

    drifted: whether the device is known not to be like the population; what it may look like is then its own bouts',
    though not how much they vary.
    """

    def __init__(self, population: Population, *, drifted: bool = False) -> None:
        self.population = population
        self.drifted = drifted
        self.learned: dict[int, Learned] = {}
        self._expected: dict[int, Expected | None] = {}

    def take(self, activity: int, mean: Floats) -> None:
        """Learn one bout's mean (20,)."""
        before = self.learned.get(activity)
        if before is None:
            before = Learned(0, np.zeros(COUNT), np.zeros(COUNT))
        self.learned[activity] = Learned(before.bouts + 1, before.total + mean, before.square + mean * mean)
        self._expected.clear()

    def bouts(self, activity: int) -> int:
        """How many bouts of an activity were learned."""
        learned = self.learned.get(activity)
        return 0 if learned is None else learned.bouts

    def dump(self) -> Any:
        """State as plain values."""
        return {
            code: [item.bouts, np.array(item.total).tobytes(), np.array(item.square).tobytes()]
            for code, item in self.learned.items()
        }

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        self.learned = {
            int(code): Learned(bouts, np.frombuffer(total), np.frombuffer(square))
            for code, (bouts, total, square) in state.items()
        }
        self._expected.clear()

    def expected(self, activity: int) -> Expected | None:
        """What a bout of this activity should show, or None if nobody has shown it."""
        if activity not in self._expected:
            self._expected[activity] = self._narrowed(activity)
        return self._expected[activity]

    def _narrowed(self, activity: int) -> Expected | None:
        learned, known = self.learned.get(activity), self.population.activities[activity]
        if known is None and self.population.known:
            return None
        count = 0 if learned is None else learned.bouts
        alone = known is None or self.drifted
        if alone and count < ALONE_BOUTS:
            return None
        total = np.zeros(COUNT) if learned is None else learned.total
        mean, people, between, within = known or _UNKNOWN
        variance = np.diagonal(between)
        prior = np.zeros(COUNT) if alone else variance / people
        centre = (total + prior * mean) / (count + prior)
        factor = self._own_scale(activity, variance)
        return Expected(centre, factor * variance / (count + prior), _scaled(between, factor), within)

    def _own_scale(self, activity: int, variance: Floats) -> Floats:
        """(20,) how much wider than the population's this device's bouts lie apart."""
        learned = self.learned.get(activity)
        if learned is None or learned.bouts < 2:
            return np.ones(COUNT)
        return (OWN_PRIOR + _scatter(learned) / variance) / (OWN_PRIOR + learned.bouts - 1)


def _scatter(learned: Learned) -> Floats:
    """(20,) sum of squared deviations of bout means from their mean."""
    total = learned.total
    return np.maximum(learned.square - total * total / learned.bouts, 0.0)


def _scaled(covariance: Floats, factor: Floats) -> Floats:
    """(20, 20) covariance with variances multiplied by factor (20,), correlations as they were."""
    root = np.sqrt(factor)
    return covariance * root[:, None] * root
