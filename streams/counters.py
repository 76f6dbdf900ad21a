"""What a process counts: totals by metric and labels, added to by one thread and read by `/metrics` in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.metrics import DUPLICATES, MESSAGES, READINGS, REJECTED, WINDOWS, Metric, Samples

if TYPE_CHECKING:
    from streams.processor import Outcome


class Counters:
    """Totals since the process began."""

    def __init__(self, *begin_at_zero: Metric) -> None:
        self._totals: dict[Metric, dict[tuple[str, ...], float]] = {each: {(): 0.0} for each in begin_at_zero}

    def add(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Count; labels in the order of the metric's."""
        kept = self._totals.setdefault(metric, {})
        kept[labels] = kept.get(labels, 0.0) + amount

    def samples(self) -> Samples:
        """A copy of the totals."""
        return {metric: kept.copy() for metric, kept in self._totals.copy().items()}


def of_agent() -> Counters:
    """The agent's counters; those without labels are there from the start, so that a rate has a beginning."""
    return Counters(MESSAGES, READINGS, DUPLICATES, WINDOWS)


def count(counters: Counters, records: Sequence[object], outcome: Outcome) -> None:
    """Add what a run of records has led to."""
    counters.add(MESSAGES, len(records))
    counters.add(READINGS, outcome.readings)
    counters.add(DUPLICATES, outcome.duplicates)
    counters.add(WINDOWS, outcome.windows)
    for rejection in outcome.rejections:
        counters.add(REJECTED, 1, rejection.reject_class)
