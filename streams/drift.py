"""What a drift detector is: from a device's readings and windows to the changes and faults that are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from schemas.activity import Activity
from schemas.events import Direction, Severity, Test
from streams.quality import Degraded, Refused
from streams.windows import Floats, Readings, Windows

_BROAD: Final = 4  # statistics that moved together
_LASTING: Final = 5  # bouts that agreed


@dataclass(frozen=True, slots=True)
class Change:
    """One feature of one device has moved.

    before, after: means of the statistic, in its unit; effect: their distance in reference standard deviations.
    ts, change_ts: event time of the alarm and of the change; offset, change_offset: the records that carried them.
    estimate: what the test estimates, by name. breadth: statistics that moved with it. bouts: that agreed. hurts: the
    model's confidence fell, or its errors rose, at the same time. epoch: the record since which the device was last
    learned anew, where a detector makes one alarm of all that comes until it is again.
    """

    feature: str
    statistic: str
    test: Test
    before: float
    after: float
    effect: float
    ts: float
    change_ts: float
    offset: int
    change_offset: int
    activity: Activity | None = None
    estimate: dict[str, float] | None = None
    breadth: int = 1
    bouts: int = 1
    hurts: bool = False
    epoch: int | None = None

    @property
    def direction(self) -> Direction:
        """Which way the statistic moved."""
        return "up" if self.after >= self.before else "down"

    @property
    def severity(self) -> Severity:
        """How far, how broadly, for how long, and whether the model suffers; ADWIN itself has no warning zone."""
        far = (self.effect >= 4) + (self.effect >= 8)
        points = far + (self.breadth >= _BROAD) + (self.bouts >= _LASTING) + self.hurts
        return "critical" if points >= 2 else "warning" if points else "info"


class Detector(Protocol):
    """One device's detector. config: names everything that its state depends on: other config, fresh state."""

    config: str

    def observe(self, readings: Readings, windows: Windows, refused: Sequence[Refused] = ()) -> list[Change | Degraded]:
        """Changes found in newly accepted readings (where the kind's `measure` is None; else they are left out) or in
        newly completed windows, which come with their measures; in event-time order. refused: what the gate did not
        let through meanwhile.
        """

    def dump(self) -> Any:
        """State as plain values (numbers, strings, bytes, lists, dicts)."""

    def load(self, state: Any) -> None:
        """Continue from a dumped state of the same config."""


class Kind(Protocol):
    """A way to detect: called, it gives a fresh detector.

    measure: from windows (n, 128, 12) of any devices to the numbers (n, k) that its detectors look at, each row by
    itself, to the last bit; None where they look at the readings themselves.
    """

    @property
    def measure(self) -> Callable[[Floats], Floats] | None:
        """See above."""

    def __call__(self) -> Detector:
        """A fresh detector."""
