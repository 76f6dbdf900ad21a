"""What the monitor knows now: written by the threads of `workers.watching`, read by the page, `/api` and `/metrics`."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.events import ModelDeployed, WindowStatistics
from streams.eventlog import Logged
from streams.lag import Look, PartitionLag
from streams.letters import Letter
from workers.chain import Chain
from workers.processes import ProcessSeen

LAST_LETTERS: Final = 300
DEVICES: Final = 500
POINTS: Final = 4_000
NOT_LOOKED: Final = "not looked yet"


@dataclass(slots=True)
class DeviceSeen:
    """Window statistics of one device as they came; ends, values, activities have the same length."""

    statistics: list[str] = field(default_factory=list)
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=POINTS))
    values: deque[list[float]] = field(default_factory=lambda: deque(maxlen=POINTS))
    activities: deque[str | None] = field(default_factory=lambda: deque(maxlen=POINTS))

    def take(self, told: WindowStatistics) -> None:
        """Windows that are not newer than the last one have been shown before."""
        if told.statistics != self.statistics:
            self.statistics = list(told.statistics)
            for each in (self.ends, self.values, self.activities):
                each.clear()
        for end, row, activity in zip(told.ends, told.values, told.activities, strict=False):
            if (not self.ends or end > self.ends[-1]) and len(row) == len(self.statistics):
                self.ends.append(end)
                self.values.append(row)
                self.activities.append(activity)


@dataclass(slots=True)
class Kafka:
    """The last look at lag. look, lags: None while nothing is known; trouble, since: why not, and since when."""

    look: Look | None = None
    lags: list[PartitionLag] | None = None
    rates: dict[str, float] = field(default_factory=dict)  # by topic, records a second
    seconds: float = 0.0
    trouble: str | None = NOT_LOOKED
    since: float = 0.0


class Seen:
    """All of it. Each part is replaced whole or kept under its own lock."""

    def __init__(self) -> None:
        self.kafka = Kafka()
        self.processes: list[ProcessSeen] = []
        self.servers: dict[str, str | None] = {}  # Kafka's, MLflow's and the router's trouble; None where well
        self.routed: str | None = None
        self.readings_rate: float | None = None
        self.chain = Chain()
        self.events_read = False
        self.current: ModelDeployed | None = None
        self.current_read = False
        self.devices: dict[str, DeviceSeen] = {}
        self.letters: deque[Letter] = deque(maxlen=LAST_LETTERS)
        self.letter_counts: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()

    def take_statistics(self, told: WindowStatistics) -> None:
        """Windows of a device; the device that came first makes room where there are too many."""
        with self.lock:
            if told.device not in self.devices and len(self.devices) >= DEVICES:
                del self.devices[next(iter(self.devices))]
            self.devices.setdefault(told.device, DeviceSeen()).take(told)

    def take_letter(self, letter: Letter) -> None:
        """Count a letter and keep the beginning of it."""
        with self.lock:
            self.letters.append(letter)
            self.letter_counts[letter.topic, letter.reject_class] += 1

    def last_letters(self) -> list[Letter]:
        """The last ones, newest first."""
        with self.lock:
            return list(reversed(self.letters))

    def counts(self) -> dict[tuple[str, str], int]:
        """Letters by topic and class."""
        with self.lock:
            return dict(self.letter_counts)

    def events(self, *kinds: type) -> list[Logged]:
        """Events of some kinds, oldest first."""
        found = [each for each in self.chain.all() if not kinds or isinstance(each.envelope.event, kinds)]
        return sorted(found, key=lambda each: each.written)


def of_group(lags: Sequence[PartitionLag]) -> dict[str, list[PartitionLag]]:
    """Lags by group, in the order of their names."""
    found: dict[str, list[PartitionLag]] = {}
    for each in lags:
        found.setdefault(each.group, []).append(each)
    return found


def total(values: Sequence[float | None]) -> float | None:
    """Their sum; None if any is not known or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def most(values: Sequence[float | None]) -> float | None:
    """The largest that is known."""
    return max((value for value in values if value is not None), default=None)


Json = dict[str, Any]
