"""Whether anything was lost, invented or committed too early: an undisturbed reading of the same topic says."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP, AGENT_STATE, DRIFT, Topic
from streams.kafka import client_config, reader_config
from streams.records import Record
from streams.state import last_offset
from tests.chaos.core import Core
from tests.integration.agent_process import DEAD_LETTERS

_ASK_S = 10.0


class Tail:
    """What a topic has gained since it was last read."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self.name = settings.topic(topic)
        self.config = reader_config(settings, **{"enable.partition.eof": True, "auto.offset.reset": "earliest"})
        self.consumer = Consumer(self.config)
        self.next = dict.fromkeys(self.consumer.list_topics(self.name, timeout=_ASK_S).topics[self.name].partitions, 0)
        self._assign()

    def _assign(self) -> None:
        self.consumer.assign([TopicPartition(self.name, *place) for place in self.next.items()])

    def read(self, seconds: float = 120) -> list[Message]:
        """All up to the ends as they are now."""
        deadline = time.monotonic() + seconds
        while (ends := self._ends()) is None:
            assert time.monotonic() < deadline, f"{self.name}: Kafka does not tell where it ends"
            # A client that has met a frozen broker was seen to get no answers for minutes after its return.
            self.consumer.close()
            self.consumer = Consumer(self.config)
            self._assign()
        found = []
        while any(self.next[partition] < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{self.name} gave nothing: at {self.next}, ends {ends}"
            for message in self.consumer.consume(10_000, 0.2):
                if message.error() is None:
                    found.append(message)
                    self.next[message.partition()] = message.offset() + 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    self.next[message.partition()] = max(self.next[message.partition()], message.offset())
        return found

    def _ends(self) -> dict[int, int] | None:
        """End offsets; None while a broker that was frozen or killed does not tell them."""
        try:
            return {
                partition: self.consumer.get_watermark_offsets(TopicPartition(self.name, partition), timeout=_ASK_S)[1]
                for partition in self.next
            }
        except KafkaException:
            return None


class Group:
    """How far the agent's group has committed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{settings.namespace}{AGENT_GROUP}"
        self.admin = AdminClient(client_config(settings))
        self.consumer = Consumer(client_config(settings, **{"group.id": self.name}))
        self.places = [TopicPartition(settings.topic(ACTIVITY), number) for number in range(ACTIVITY.partitions)]

    def owners(self) -> int | None:
        """Members that have partitions; None while the group is rebalancing or the broker does not say."""
        try:
            described = self.admin.describe_consumer_groups([self.name], request_timeout=5)[self.name].result()
        except KafkaException:
            self.admin = AdminClient(client_config(self.settings))  # the coordinator may have gone with the broker
            return None
        if described.state != ConsumerGroupState.STABLE:
            return None
        return sum(bool(member.assignment.topic_partitions) for member in described.members)

    def committed(self) -> dict[int, int] | None:
        """By partition, 0 where there is none; None if the broker does not say."""
        try:
            found = self.consumer.committed(self.places, timeout=2)
        except KafkaException:
            return None
        if any(place.error is not None for place in found):
            return None
        return {place.partition: max(0, place.offset) for place in found}

    def ends(self) -> dict[int, int] | None:
        """End offsets; None if the broker does not say."""
        try:
            return {place.partition: self.consumer.get_watermark_offsets(place, timeout=2)[1] for place in self.places}
        except KafkaException:
            return None


class Truth:
    """What the records on `activity` lead to if nothing ever goes wrong; grows with the topic."""

    def __init__(self, settings: Settings) -> None:
        self.tail = Tail(settings, ACTIVITY)
        self.drifts: dict[str, tuple[int, int]] = {}
        self.rejections: dict[tuple[int, int], str] = {}
        # By partition, in offset order: what is due once the committed offset is beyond it.
        self.due_drifts: dict[int, deque[tuple[int, str]]] = defaultdict(deque)
        self.due_letters: dict[int, deque[int]] = defaultdict(deque)
        self.due_states: dict[int, deque[tuple[int, str]]] = defaultdict(deque)
        self.cores = {partition: Core(settings, partition) for partition in self.tail.next}
        self.records = 0

    def follow(self) -> None:
        """Process what has been added."""
        runs: dict[int, list[Record]] = defaultdict(list)
        for message in self.tail.read():
            stamp = message.timestamp()[1] / 1000
            runs[message.partition()].append(Record(message.offset(), stamp, message.key(), message.value()))
        for partition, records in runs.items():
            outcome = self.cores[partition].process(records)
            self.records += len(records)
            rejected = {rejection.record.offset: rejection.reject_class for rejection in outcome.rejections}
            for drift in outcome.drifts:
                self.drifts[drift.id] = (partition, drift.event.position.offset)
                self.due_drifts[partition].append((drift.event.position.offset, drift.id))
            for offset, reject_class in rejected.items():
                self.rejections[partition, offset] = reject_class
                self.due_letters[partition].append(offset)
            for record in records:
                if record.offset not in rejected:
                    assert record.key is not None
                    self.due_states[partition].append((record.offset, record.key.decode()))

    @property
    def states(self) -> dict[str, bytes]:
        """Each device's state, as it would be saved."""
        return {device: blob for core in self.cores.values() for device, blob in core.states.items()}


class Effects:
    """What the agents have written."""

    def __init__(self, settings: Settings) -> None:
        self.drift = Tail(settings, DRIFT)
        self.letters = Tail(settings, DEAD_LETTERS)
        self.changelog = Tail(settings, AGENT_STATE)
        self.drifts: Counter[str] = Counter()
        self.dead: dict[tuple[int, int], set[str]] = defaultdict(set)
        self.dead_records = 0
        self.states: dict[str, bytes] = {}
        self.last_offset: dict[str, int] = {}
        self.rewound: list[str] = []

    def follow(self) -> None:
        """Take in what has been added."""
        for message in self.drift.read():
            headers = dict(message.headers() or ())
            if headers["ce_type"] == b"driftloop.drift.detected.v1":
                self.drifts[headers["ce_id"].decode()] += 1
        for message in self.letters.read():
            headers = dict(message.headers() or ())
            place = int(headers["dlq.partition"]), int(headers["dlq.offset"])
            self.dead[place].add(headers["dlq.class"].decode())
            self.dead_records += 1
        for message in self.changelog.read():
            if message.value() is None:
                continue
            device = message.key().decode()
            offset, known = last_offset(message.value()), self.last_offset.get(device, -1)
            if offset < known:  # by a zombie; recovery must not go on from it
                self.rewound.append(f"{device}: {offset} written after {known}")
            else:
                self.states[device], self.last_offset[device] = message.value(), offset


@dataclass
class Verdict:
    """What is wrong, if anything. lost: records that are neither in a state nor, where due, dead-lettered."""

    readings: int = 0
    records: int = 0
    expected_ids: int = 0
    expected_letters: int = 0
    missing_ids: int = 0
    extra_ids: int = 0
    lost: int = 0
    raw_duplicates: int = 0
    duplicate_letters: int = 0
    wrong_letters: int = 0
    committed_too_early: int = 0
    states_rewound: int = 0
    states_differ: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing invented, nothing committed that was not durable."""
        return not (
            self.missing_ids
            or self.extra_ids
            or self.lost
            or self.wrong_letters
            or self.committed_too_early
            or self.states_differ
        )


class Judge:
    """Compares effects with the truth: at each kill what is below the committed offsets, in the end all."""

    def __init__(self, settings: Settings) -> None:
        self.group = Group(settings)
        self.truth = Truth(settings)
        self.effects = Effects(settings)
        self.too_early: list[str] = []

    def check(self, committed: dict[int, int]) -> int:
        """How many effects are missing of records below these committed offsets, which were read just before."""
        self.truth.follow()
        self.effects.follow()
        before = len(self.too_early)
        for partition, until in committed.items():
            for offset, drift in _below(self.truth.due_drifts[partition], until):
                if drift not in self.effects.drifts:
                    self.too_early.append(f"{partition}/{offset}: committed {until}, drift {drift} is not there")
            letters = self.truth.due_letters[partition]
            while letters and letters[0] < until:
                offset = letters.popleft()
                if (partition, offset) not in self.effects.dead:
                    self.too_early.append(f"{partition}/{offset}: committed {until}, its dead letter is not there")
            for offset, device in _below(self.truth.due_states[partition], until):
                if self.effects.last_offset.get(device, -1) < offset:
                    self.too_early.append(f"{partition}/{offset}: committed {until}, not in the state of {device}")
        return len(self.too_early) - before

    def verdict(self, readings: int) -> Verdict:
        """Of all that is on the topics now; the agents should have come to the end before."""
        committed, ends = self.group.committed(), self.group.ends()
        assert committed is not None
        assert ends is not None
        self.check(committed)
        truth, effects = self.truth, self.effects
        expected, found = set(truth.drifts), set(effects.drifts)
        missing, extra = expected - found, found - expected
        uncommitted = {partition: end - committed[partition] for partition, end in ends.items()}
        lost_letters = [place for place in truth.rejections if place not in effects.dead]
        wrong_letters = [
            place for place, classes in effects.dead.items() if classes != {truth.rejections.get(place, "none")}
        ]
        not_in_state = [text for text in self.too_early if "not in the state" in text]
        differ = [device for device, blob in truth.states.items() if effects.states.get(device) != blob]
        examples = [
            *(f"missing: drift {drift} of {truth.drifts[drift]}" for drift in sorted(missing)),
            *(f"extra: drift {drift}" for drift in sorted(extra)),
            *(f"uncommitted: {count} of partition {partition}" for partition, count in uncommitted.items() if count),
            *(f"no dead letter: {place}, {truth.rejections[place]}" for place in lost_letters),
            *(f"wrong dead letter: {place}, {effects.dead[place]}" for place in wrong_letters),
            *self.too_early,
            *(f"state differs: {device}" for device in differ),
            *(f"state rewound: {text}" for text in effects.rewound),
        ]
        return Verdict(
            readings=readings,
            records=truth.records,
            expected_ids=len(expected),
            expected_letters=len(truth.rejections),
            missing_ids=len(missing),
            extra_ids=len(extra),
            lost=sum(uncommitted.values()) + len(lost_letters) + len(not_in_state),
            raw_duplicates=effects.drifts.total() - len(found),
            duplicate_letters=effects.dead_records - len(effects.dead),
            wrong_letters=len(wrong_letters),
            committed_too_early=len(self.too_early),
            states_rewound=len(effects.rewound),
            states_differ=len(differ),
            examples=examples,
        )


def _below(due: deque[tuple[int, Any]], until: int) -> list[tuple[int, Any]]:
    found = []
    while due and due[0][0] < until:
        found.append(due.popleft())
    return found
