"""Ends an agent that looks alive while its readings wait: a supervisor can only restart what exits.

"Consumers slowly die" is Faust's oldest open complaint (#175, #523, #532, #640): a worker keeps its partitions, beats
its heart, and reads nothing. What does not lie is the broker: offsets that stand still while there is more to read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.errors import Stop
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP
from streams.kafka import client_config

log = structlog.get_logger()

_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """How far a partition is processed, and how far it goes."""

    committed: int
    end: int


class Offsets(Protocol):
    """Where the partitions are."""

    def ask(self) -> dict[int, Place] | None:
        """Each partition's place; None while the broker does not tell."""


class PartitionOffsets:
    """The partitions of `activity`, as the broker has them for the agent's group; asked, never joined."""

    def __init__(self, settings: Settings) -> None:
        self.topic = settings.topic(ACTIVITY)
        self.admin = AdminClient(client_config(settings))
        # librdkafka 2.16 ends the process where an admin client asks a coordinator that is not ready for offsets.
        group = f"{settings.namespace}{AGENT_GROUP}"
        self.consumer = Consumer(client_config(settings, **{"group.id": group, "enable.auto.commit": False}))

    def ask(self) -> dict[int, Place] | None:
        """Each partition's place; None while the broker does not tell."""
        try:
            numbers = self.admin.list_topics(self.topic, timeout=_TIMEOUT_S).topics[self.topic].partitions
            partitions = [TopicPartition(self.topic, number) for number in numbers]
            firsts, ends = self._ends(partitions, OffsetSpec.earliest()), self._ends(partitions, OffsetSpec.latest())
            places = {}
            for place in self.consumer.committed(partitions, timeout=_TIMEOUT_S):
                number = place.partition
                places[number] = Place(max(firsts[number], place.offset), ends[number])
        except (KafkaException, KeyError):
            return None
        return places

    def _ends(self, partitions: list[TopicPartition], end: OffsetSpec) -> dict[int, int]:
        """Offsets of one end of each partition; what an open transaction holds back is not to be read yet."""
        asked = self.admin.list_offsets(
            dict.fromkeys(partitions, end),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_TIMEOUT_S,
        )
        return {partition.partition: int(future.result().offset) for partition, future in asked.items()}


class Watchdog:
    """Calls `stalled` once a partition has had more to read for `seconds` and its committed offset has not moved.

    owned: the agent's partitions; while it has none, all are looked at: one that should have some may be the stalled.
    """

    def __init__(
        self,
        offsets: Offsets,
        owned: Callable[[], Sequence[int]],
        seconds: float,
        stalled: Callable[[BaseException], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.offsets = offsets
        self.owned = owned
        self.seconds = seconds
        self.stalled = stalled
        self.clock = clock
        self._moved: dict[int, tuple[int, float]] = {}

    def start(self) -> None:
        """Look, from a thread of its own: whatever holds the agent's loop does not hold this one."""
        threading.Thread(target=self._look_forever, name="watchdog", daemon=True).start()

    def _look_forever(self) -> None:
        while True:
            time.sleep(min(5.0, self.seconds / 4))
            self.look()

    def look(self) -> None:
        """Ask where the partitions are, once."""
        places = self.offsets.ask()
        now = self.clock()
        if places is None:  # while the broker is away nothing can move
            self._moved.clear()
            return
        watched = self.owned() or places
        for partition, place in places.items():
            committed, since = self._moved.get(partition, (-1, now))
            if partition not in watched or place.committed != committed or place.end <= place.committed:
                self._moved[partition] = place.committed, now
            elif now - since >= self.seconds:
                self.stalled(
                    Stop(
                        f"partition {partition} stands at {place.committed} of {place.end} for {now - since:.0f} s: "
                        "ending, to be started anew"
                    )
                )
