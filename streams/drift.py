"""What a drift detector is: from a device's readings and windows to the changes that are reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from schemas.activity import Activity
from schemas.events import Direction, Severity, Test
from streams.windows import Readings, Windows


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
    """One device's detector. `config` names everything that its state depends on: other config, fresh state."""

    config: str

    def observe(self, readings: Readings, windows: Windows) -> list[Change]:
        """Changes found in newly accepted readings and newly completed windows, in event-time order."""

    def dump(self) -> Any:
        """State as plain values (numbers, strings, bytes, lists, dicts)."""

    def load(self, state: Any) -> None:
        """Continue from a dumped state of the same config."""
