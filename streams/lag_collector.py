"""Looks at a cluster's groups and offsets through the admin API and, for times, at single records; joins no group.

The order of the questions is the point: committed offsets before end offsets. A consumer that commits in between can
then only make the lag look larger by what it has just done, never negative.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.errors import Retry
from schemas.settings import Settings
from streams.kafka import client_config, reader_config
from streams.lag import GROUPS, GroupSeen, Look, PartitionSeen

log = structlog.get_logger()

TIMEOUT_S: Final = 5.0
# Log starts change seldom.
SELDOM_S: Final = 10.0
# Reads a round; for the others the time at which the end passed the offset is interpolated.
MOST_READS: Final = 64
READ_S: Final = 1.0
_KEPT: Final = 20_000


class Collector:
    """One cluster. pattern: a regular expression that the names of groups must match; None takes all."""

    def __init__(self, settings: Settings, pattern: str | None = None) -> None:
        self.settings = settings
        self.pattern = None if pattern is None else re.compile(pattern)
        self.admin = self._client()
        self.ours = {
            f"{settings.namespace}{group}": (settings.topic(topic), topic.partitions) for group, topic in GROUPS.items()
        }
        self._groups: dict[str, GroupSeen] = {}
        self._starts: dict[tuple[str, int], int] = {}
        self._asked = float("-inf")

    def look(self) -> Look:
        """Everything, as it is now. Raises Retry if the broker does not tell: then nothing is known."""
        try:
            return self._look()
        except KafkaException as error:
            # A client whose broker was restarted may ask in vain for ever (librdkafka 2.16, list_consumer_groups).
            self.admin = self._client()
            self._asked = float("-inf")
            raise Retry(f"offsets cannot be read: {error.args[0].str()}") from error

    def _client(self) -> AdminClient:
        return AdminClient(client_config(self.settings, **{"socket.timeout.ms": 5_000}))

    def _look(self) -> Look:
        metadata = self.admin.list_topics(timeout=TIMEOUT_S)
        partitions = {
            (name, number): PartitionSeen(each.leader, tuple(each.replicas), tuple(each.isrs))
            for name, topic in metadata.topics.items()
            for number, each in topic.partitions.items()
        }
        listed = self.admin.list_consumer_groups(request_timeout=TIMEOUT_S).result()
        if listed.errors and not listed.valid:
            raise KafkaException(listed.errors[0])
        # Groups without members are listed as well: what they have not read is measured all the same.
        names = sorted({each.group_id for each in listed.valid if self._wanted(each.group_id)} | self.ours.keys())
        self._groups = self._described(names)
        names = [name for name in names if self._answers(name)]
        committed = self._committed(names, partitions)
        ends = self._offsets(partitions.keys(), OffsetSpec.latest())  # only now: see above
        seldom = time.monotonic() - self._asked >= SELDOM_S
        if seldom or not self._starts.keys() >= partitions.keys():
            self._starts = self._offsets(partitions.keys(), OffsetSpec.earliest())
            self._asked = time.monotonic()
        return Look(
            ts=time.time(),
            groups={name: self._groups.get(name, GroupSeen()) for name in names},
            committed=committed,
            starts=self._starts,
            ends=ends,
            partitions=partitions,
            brokers={number: f"{each.host}:{each.port}" for number, each in metadata.brokers.items()},
        )

    def _wanted(self, group: str) -> bool:
        return self.pattern is None or self.pattern.search(group) is not None

    def _answers(self, group: str) -> bool:
        """Whether a group's coordinator has just answered; only then may it be asked for offsets.

        A coordinator that is not ready answers that question in a way that ends our process: librdkafka 2.16 refreshes
        the coordinator of an admin client's own group, which it has not (rd_kafka_handle_OffsetFetch, SIGSEGV).
        Raises Retry for a group of ours; another one is left out of this round.
        """
        if self._groups[group].state is not None:
            return True
        if group in self.ours:
            raise Retry(f"the coordinator of group {group} is not ready")
        return False

    def _described(self, names: list[str]) -> dict[str, GroupSeen]:
        found = {}
        for name, future in self.admin.describe_consumer_groups(names, request_timeout=TIMEOUT_S).items():
            try:
                found[name] = _group(future.result())
            except KafkaException as error:
                # A group that has never been is one without members; anything else is not known.
                missing = error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND
                found[name] = GroupSeen("dead", 0) if missing else GroupSeen()
        return found

    def _committed(self, names: list[str], known: Mapping[tuple[str, int], Any]) -> dict[tuple[str, str, int], Any]:
        futures = {}
        for name in names:
            asked = self.admin.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(name)], request_timeout=TIMEOUT_S
            )
            futures[name] = asked[name]
        found: dict[tuple[str, str, int], Any] = {}
        for name, future in futures.items():
            # Partitions that a group reads, or that ours are meant to read, are there before the first commit.
            for topic, number in self._groups.get(name, GroupSeen()).owners:
                found[name, topic, number] = None
            if name in self.ours:
                topic = self.ours[name][0]
                found |= {(name, topic, number): None for place, number in known if place == topic}
            try:
                offsets = future.result().topic_partitions
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise
                continue
            for each in offsets:
                if (each.topic, each.partition) in known:  # commits outlive a topic that was deleted
                    found[name, each.topic, each.partition] = each.offset if each.offset >= 0 else None
        return found

    def _offsets(self, places: Iterable[Any], which: Any) -> dict[tuple[str, int], int]:
        asked = {TopicPartition(topic, number): which for topic, number in places}
        found = {}
        if asked:
            for place, future in self.admin.list_offsets(asked, request_timeout=TIMEOUT_S).items():
                try:
                    found[place.topic, place.partition] = future.result().offset
                except KafkaException as error:  # a partition without a leader is not known; the others are
                    log.debug("lag.offset", topic=place.topic, partition=place.partition, error=error.args[0].str())
            if not found:
                raise Retry("no partition tells its offsets")
        return found


def _group(described: Any) -> GroupSeen:
    owners = {
        (place.topic, place.partition): f"{member.client_id}@{member.host.lstrip('/')}"
        for member in described.members
        if member.assignment is not None
        for place in member.assignment.topic_partitions
    }
    return GroupSeen(described.state.name.lower().replace("_", "-"), len(described.members), owners)


class RecordTimes:
    """When the records at committed offsets were written: one short read for each that has not been looked up yet."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.known: dict[tuple[str, int, int], float] = {}
        self._empty: dict[tuple[str, int, int], int] = {}  # only markers from there up to this end
        self._consumer: Consumer | None = None

    def of(self, look: Look) -> dict[tuple[str, int, int], float | None]:
        """Times of the records that groups have before them, as far as MOST_READS and READ_S allow; None: no record."""
        wanted = {
            (topic, number, committed)
            for (_, topic, number), committed in look.committed.items()
            if committed is not None and committed < look.ends.get((topic, number), -1)
        }
        if len(self.known) > _KEPT:
            self.known = {place: self.known[place] for place in wanted if place in self.known}
        empty = {place for place in wanted if self._empty.get(place) == look.ends[place[:2]]}
        fresh = sorted(wanted - self.known.keys() - empty)
        # One offset a partition at a time: a consumer has one position in it.
        asked = {place[:2]: place for place in fresh[:MOST_READS]}
        read = self._read(list(asked.values())) if asked else {}
        self.known |= {place: written for place, written in read.items() if written is not None}
        self._empty = {place: look.ends[place[:2]] for place in (*empty, *(p for p, at in read.items() if at is None))}
        return {**{place: self.known.get(place) for place in (*empty, *(wanted & self.known.keys()))}, **read}

    def _read(self, places: list[tuple[str, int, int]]) -> dict[tuple[str, int, int], float | None]:
        if self._consumer is None:
            self._consumer = Consumer(
                reader_config(
                    self.settings,
                    **{
                        "enable.partition.eof": True,
                        "auto.offset.reset": "earliest",
                        # One record is wanted. (queued.min.messages=1 would hold back a partition's end for 2 s.)
                        "fetch.message.max.bytes": 16 * 1024,
                        "fetch.wait.max.ms": 50,
                    },
                )
            )
        consumer, waiting = self._consumer, {place[:2]: place for place in places}
        found: dict[tuple[str, int, int], float | None] = {}
        try:
            consumer.assign([TopicPartition(*place) for place in places])
            deadline = time.monotonic() + READ_S
            while waiting and time.monotonic() < deadline:
                message = consumer.poll(0.1)
                if message is None:
                    continue
                if message.error() is not None and message.error().code() != KafkaError._PARTITION_EOF:
                    continue
                place = waiting.pop((message.topic(), message.partition()), None)
                if place is not None:
                    found[place] = None if message.error() is not None else message.timestamp()[1] / 1000
            consumer.unassign()
        except KafkaException as error:
            log.debug("lag.times", error=error.args[0].str())
        return found

    def close(self) -> None:
        """Let the consumer go."""
        if self._consumer is not None:
            self._consumer.close()
