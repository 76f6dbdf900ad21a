"""A recording: what one device measured on one person, in memory, before it becomes readings on Kafka.

The MotionSense reader and the simulator make recordings, the fault injectors change them, the producer and the
benchmarks play them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from schemas.activity import SAMPLE_RATE_HZ
from streams.windows import Floats, Ints

# How the detector's design was measured: a trial begins and ends with the hand at the phone, and what is left after
# that has to hold a few windows.
BOUT_SECONDS: Final = (15.0, 45.0)
TRIMMED_SECONDS: Final = 1.5
SHORTEST_BOUT_SECONDS: Final = 8.0


@dataclass(frozen=True, slots=True)
class Person:
    """Who carries the device. weight in kg, height in cm, age in years, gender 0 female and 1 male."""

    id: str
    weight: float | None = None
    height: float | None = None
    age: float | None = None
    gender: int | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """n readings of one device on one person, oldest first.

    ts: (n,) seconds since the epoch. values: (n, 12) float64, columns as in `schemas.activity.CHANNEL_NAMES`, in rad,
    g and rad/s. labels: (n,) codes of `streams.windows.LABEL_CODES`. trials: (n,) number of the trial or bout.
    """

    device: str
    person: Person
    ts: Floats
    values: Floats
    labels: Ints
    trials: Ints

    def __len__(self) -> int:
        return len(self.ts)

    def chosen(self, rows: NDArray[np.bool_] | Ints | slice) -> Recording:
        """The readings that a mask, an index or a slice names."""
        return replace(
            self, ts=self.ts[rows], values=self.values[rows], labels=self.labels[rows], trials=self.trials[rows]
        )

    def row_at(self, seconds: float) -> int:
        """Index of the first reading at or after so many seconds from the first one; n if there is none."""
        # Event times near 1.7e9 are exact to 0.2 µs, so a microsecond is no difference.
        return int(np.searchsorted(self.ts, self.ts[0] + seconds - 1e-6)) if len(self) else 0

    def between(self, start: float = 0.0, end: float = np.inf) -> Recording:
        """Readings start ≤ t < end, t in seconds since the first reading."""
        return self.chosen(slice(self.row_at(start), self.row_at(end)))

    def starting_at(self, ts: float) -> Recording:
        """The same readings with the first one at event time ts."""
        return replace(self, ts=self.ts - self.ts[0] + ts) if len(self) else self


def spans(trials: Ints, labels: Ints) -> list[tuple[int, int]]:
    """First row and row after the last of each run of one trial and one label."""
    if not len(trials):
        return []
    changes = np.flatnonzero((np.diff(trials) != 0) | (np.diff(labels) != 0)) + 1
    bounds = [0, *changes.tolist(), len(trials)]
    return list(pairwise(bounds))


def shuffled_bouts(recording: Recording, rng: Generator, seconds: tuple[float, float] = BOUT_SECONDS) -> Recording:
    """The recording recut into bouts of one activity in random order: how a day looks, rather than a protocol.

    Each trial loses 1.5 s at both ends and is cut into bouts of uniform(*seconds) s; a rest under 8 s is dropped. No
    activity comes twice in a row unless nothing else is left. Re-timed at 50 Hz from the first reading's time, without
    gaps; labels and trials stay with their readings. The numbers are those with which the
    detector's design was measured (notes/drift.md, section 6), so that its figures can be repeated.
    """
    trim, shortest = round(TRIMMED_SECONDS * SAMPLE_RATE_HZ), round(SHORTEST_BOUT_SECONDS * SAMPLE_RATE_HZ)
    bouts: list[tuple[int, int]] = []
    for first, last in spans(recording.trials, recording.labels):
        at, end = first + trim, last - trim
        while end - at >= shortest:
            length = min(end - at, max(shortest, round(rng.uniform(*seconds) * SAMPLE_RATE_HZ)))
            bouts.append((at, at + length))
            at += length
    order = shuffled_apart([int(recording.labels[start]) for start, _ in bouts], rng)
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(*bouts[i]) for i in order)])
    start = recording.ts[0] if len(recording) else 0.0
    return replace(recording.chosen(rows), ts=start + np.arange(len(rows)) / SAMPLE_RATE_HZ)


def shuffled_apart(labels: Sequence[int], rng: Generator) -> list[int]:
    """A random order of indices in which equal labels are never neighbours, where that is possible."""
    waiting: dict[int, list[int]] = {}
    for index in rng.permutation(len(labels)).tolist():
        waiting.setdefault(labels[index], []).append(index)
    order: list[int] = []
    last: int | None = None
    while waiting:
        left = sum(map(len, waiting.values()))
        most = max(waiting, key=lambda label: len(waiting[label]))
        # With more than half of what is left, a label fits only if it comes now, and then every other time.
        if most != last and 2 * len(waiting[most]) > left:
            label = most
        else:
            others = [label for label in waiting if label != last] or [most]
            share = np.array([len(waiting[label]) for label in others], float)
            label = others[int(rng.choice(len(others), p=share / share.sum()))]
        order.append(waiting[label].pop())
        if not waiting[label]:
            del waiting[label]
        last = label
    return order
