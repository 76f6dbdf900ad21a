"""Which record of a partition comes next, told by the log itself: around a rebalance Faust does not deliver in order.

Records fetched before a rebalance are still handed over after Faust has gone back to the committed offset, and then it
drops what it went back for as old (0.15.3, real broker: in one of ten rebalances under load, 64 of 305 drifts lost).
A reading taken too early makes all before it look seen, so it is left out until those before it have come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import Stop
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP
from streams.kafka import client_config

log = structlog.get_logger()

# What was missing comes by itself when a rebalance ends. If it does not, it is asked for, so often and for so long.
REWIND_S: Final = 2.0
PATIENCE_S: Final = 20.0
_TIMEOUT_S: Final = 10.0


class Log(Protocol):
    """The partitions as the broker has them."""

    def committed(self, partition: int) -> int | None:
        """Offset that the group goes on from; None if it has committed none. Raises Stop if it cannot be told."""

    def first_from(self, partition: int, offset: int) -> int:
        """Offset of the first record at or after offset; there is one. Raises Stop likewise."""


class Position:
    """The next record of each owned partition. `expects` must be asked about each record as it is delivered.

    rewind: have a partition delivered from an offset on.
    """

    def __init__(
        self, log: Log, rewind: Callable[[int, int], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.log = log
        self.rewind = rewind
        self.clock = clock
        self._next: dict[int, int] = {}
        self._ahead: dict[int, _Ahead] = {}

    def forget(self) -> None:
        """Partitions were lost or what was taken was dropped: delivery begins anew at the committed offsets."""
        # New ones: what is being asked about still writes into the old.
        self._next, self._ahead = {}, {}

    async def expects(self, partition: int, offset: int) -> bool:
        """Whether this is the partition's next record, which is then taken. False for one that was taken already, and
        for one that comes too early and will come again. Raises Stop if the log cannot be asked.
        """
        expected, ahead = self._next, self._ahead
        if partition not in expected:
            committed = await asyncio.to_thread(self.log.committed, partition)
            expected[partition] = 0 if committed is None else committed
        wanted = expected[partition]
        if offset < wanted:
            return False
        # Markers of transactions and expired records leave holes: then the record ahead is the next one.
        if offset > wanted:
            known = ahead.get(partition)
            if known is None:
                first = await asyncio.to_thread(self.log.first_from, partition, wanted)
                now = self.clock()
                known = ahead[partition] = _Ahead(now, now, wanted, first, offset)
            if offset != known.first:
                return False
        ahead.pop(partition, None)
        expected[partition] = offset + 1
        return expected is self._next

    async def tend(self) -> None:
        """Rewind partitions that stay ahead. Must be called every now and then. Raises Stop if it does not help."""
        now = self.clock()
        for partition, known in list(self._ahead.items()):
            if now - known.since > PATIENCE_S:
                raise Stop(f"partition {partition}: {known.delivered} was delivered, {known.wanted} was not")
            if now - known.rewound >= REWIND_S:
                known.rewound = now
                log.warning("agent.rewound", partition=partition, delivered=known.delivered, wanted=known.wanted)
                await self.rewind(partition, known.wanted)


@dataclass(slots=True)
class _Ahead:
    """Since when a partition is ahead, when it was rewound, and the first record there is from the wanted one on."""

    since: float
    rewound: float
    wanted: int
    first: int
    delivered: int


class KafkaLog:
    """The partitions of `activity` on the broker, for the agent's group."""

    def __init__(self, settings: Settings) -> None:
        self.topic = settings.topic(ACTIVITY)
        self.consumer = Consumer(
            client_config(
                settings,
                **{
                    "group.id": f"{settings.namespace}{AGENT_GROUP}",  # asked about, never joined
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "isolation.level": "read_uncommitted",  # as Faust reads
                },
            )
        )

    def committed(self, partition: int) -> int | None:
        """Offset that the group goes on from; None if it has committed none."""
        try:
            offset = self.consumer.committed([TopicPartition(self.topic, partition)], timeout=_TIMEOUT_S)[0].offset
        except KafkaException as error:
            raise Stop(f"committed offset of {self.topic}/{partition}: {error.args[0].str()}") from error
        return None if offset < 0 else int(offset)

    def first_from(self, partition: int, offset: int) -> int:
        """Offset of the first record at or after offset."""
        self.consumer.assign([TopicPartition(self.topic, partition, offset)])
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while time.monotonic() < deadline:
                message = self.consumer.poll(0.5)
                if message is not None and message.error() is None:
                    return int(message.offset())
        except KafkaException as error:
            raise Stop(f"{self.topic}/{partition}: {error.args[0].str()}") from error
        finally:
            self.consumer.unassign()
        raise Stop(f"{self.topic}/{partition} gave nothing from {offset} on for {_TIMEOUT_S:.0f} s")
