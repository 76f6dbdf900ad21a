"""Bouts: a device's runs of windows in one activity, each of which counts once, however long it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.activity import ACTIVITIES
from streams.confirmation import Evidence
from streams.measures import COUNT
from streams.windows import Floats


@dataclass
class Bout:
    """A run of windows; its first one is not counted, as it straddles the change of activity.

    index: number of its first window; ts, offset: that window's first reading and its record. total: (20,) sum of the
    counted windows' statistics. believed: (6,) sum of all windows' probabilities. frozen: (20,) statistics of a broken
    channel. evidence: what it says.
    """

    activity: int
    index: int
    ts: float
    offset: int
    seen: int = 0
    closed: bool = False
    total: Floats = field(default_factory=lambda: np.zeros(COUNT))
    believed: Floats = field(default_factory=lambda: np.zeros(len(ACTIVITIES)))
    frozen: np.ndarray[Any, np.dtype[np.bool_]] = field(default_factory=lambda: np.zeros(COUNT, np.bool_))
    evidence: Evidence | None = None

    @property
    def count(self) -> int:
        """Windows that count."""
        return self.seen - 1

    @property
    def mean(self) -> Floats:
        """(20,) of the windows that count."""
        return self.total / self.count

    def running(self, statistics: Floats, believed: Floats) -> tuple[Floats | list[Floats], Floats | list[Floats]]:
        """Total and believed after each of these further windows; added up in their order, whatever the chunks."""
        if len(statistics) == 1:  # the usual case while a device is followed as it sends
            return [self.total + statistics[0] if self.seen else self.total], [self.believed + believed[0]]
        if not self.seen:
            statistics = np.concatenate([np.zeros((1, COUNT)), statistics[1:]])
        totals = np.add.accumulate(np.concatenate([self.total[None], statistics]), axis=0)[1:]
        beliefs = np.add.accumulate(np.concatenate([self.believed[None], believed]), axis=0)[1:]
        return totals, beliefs

    def reach(self, seen: int, total: Floats, believed: Floats) -> None:
        """So many windows now, with these sums."""
        self.seen, self.total, self.believed, self.evidence = seen, total, believed, None

    def dump(self) -> Any:
        """State as plain values."""
        sums = [self.total.tobytes(), self.believed.tobytes(), self.frozen.tobytes()]
        return [self.activity, self.index, self.ts, self.offset, self.seen, self.closed, *sums]

    @staticmethod
    def load(state: Any) -> Bout:
        """The bout of `dump`."""
        activity, index, ts, offset, seen, closed, total, believed, frozen = state
        sums = np.frombuffer(total), np.frombuffer(believed), np.frombuffer(frozen, np.bool_).copy()
        return Bout(activity, index, ts, offset, seen, closed, *sums)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statistic that an ADWIN has flagged: since which window, and when it was last flagged."""

    start: int
    ts: float


def kept(bouts: list[Bout], windows: int, most: int) -> list[Bout]:
    """The last bouts, at most so many, that have at least so many windows that count."""
    return [bout for bout in bouts if bout.count >= windows][-most:]
