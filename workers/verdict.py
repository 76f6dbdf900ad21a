"""Did it help? What is said of a deployed version once there are readings that it has not learned from.

Both are asked about the same windows, so the answer does not depend on how hard they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from streams.windows import Ints
from workers.evaluation import blocks_of, macro_f1, paired_interval

MIN_WINDOWS = 20  # labelled; of fewer nothing can be said


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict with its numbers."""

    outcome: Literal["helped", "no-effect", "harmed"]
    reason: Literal["better-after", "no-better", "worse-after", "no-labels", "superseded"]
    detail: str
    numbers: dict[str, float] = field(default_factory=dict)
    sure: bool = True  # more readings would say the same


def prove(labels: Ints, bouts: Ints, new: Ints, previous: Ints, *, margin: float, again: int) -> Proof:
    """The verdict on labelled windows from after the training window.

    labels, bouts: (n,). new, previous: (n,) what the version in service and the one before it say. again: drifts of the
    same devices since.
    """
    numbers: dict[str, float] = {"windows": len(labels), "drifts.since": again}
    if len(labels) < MIN_WINDOWS:
        return Proof(
            "no-effect", "no-labels", f"{len(labels)} labelled windows came; nothing shows that it helped", numbers
        )
    now, then = macro_f1(labels, new), macro_f1(labels, previous)
    low, high = paired_interval(labels, blocks_of(bouts), new, previous)
    numbers |= {
        "after.new": round(now, 4),
        "after.previous": round(then, 4),
        "gain.low": round(low, 4),
        "gain.high": round(high, 4),
    }
    told = f"macro F1 {then:.3f} → {now:.3f} on {len(labels)} windows since (gain 95 % {low:+.3f} to {high:+.3f})"
    told += f"; {again} drifts since" if again else "; the drift is gone"
    if high < 0:
        return Proof("harmed", "worse-after", told, numbers)
    if low > 0 and now - then >= margin:
        return Proof("helped", "better-after", told, numbers)
    return Proof("no-effect", "no-better", told, numbers, sure=-margin < low and high < margin)
