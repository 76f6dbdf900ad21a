"""What a drift detector is: from a device's readings and windows to the changes that are reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from schemas.activity import Activity
from schemas.events import Direction, Severity, Test
from streams.windows import Floats, Readings, Windows


@dataclass(frozen=True, slots=True)
class Change:
    """One feature of one device has moved.

    before, after: means of the statistic, in its unit; effect: their distance in reference standard deviations.
    ts, change_ts: event time of the alarm and of the change; offset, change_offset: the records that carried them.
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

    @property
    def direction(self) -> Direction:
        """Which way the statistic moved."""
        return "up" if self.after >= self.before else "down"

    @property
    def severity(self) -> Severity:
        """How far: ADWIN itself has no warning zone, so this is the effect's size alone."""
        return "critical" if self.effect >= 8 else "warning" if self.effect >= 4 else "info"


class Detector(Protocol):
    """One device's detector.

    config: names everything that its state depends on: other config, fresh state. measure: from windows (n, 128, 12) of
    any devices to the numbers (n, k) that the detector looks at, each row by itself, to the last bit; None where it
    looks at the readings themselves.
    """

    config: str
    measure: ClassVar[Callable[[Floats], Floats] | None]

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        """Changes found in newly accepted readings (where `measure` is None; else they are left out) or in newly
        completed windows, which come with their measures; in event-time order.
        """

    def dump(self) -> Any:
        """State as plain values (numbers, strings, bytes, lists, dicts)."""

    def load(self, state: Any) -> None:
        """Continue from a dumped state of the same config."""
