"""The agent as a real process, and the topics around it as anyone sees them: what the agent's tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local.ports import is_free
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP, DRIFT, Topic, dead_letters
from streams.detectors import DETECTORS
from streams.eventlog import read_events
from streams.kafka import client_config, producer_config, reader_config
from streams.processor import Outcome, Processor
from streams.records import Record, chunk_of

ROOT = Path(__file__).parents[2]
DEAD_LETTERS = dead_letters(ACTIVITY)
AGENT = ("-m", "workers.cli", "run", "agent")
_Answer = TypeVar("_Answer")


def eventually(ask: Callable[[], _Answer], seconds: float = 40, what: str = "it") -> _Answer:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.1)
    return answer


class Agent:
    """`driftloop run agent` in a process of its own, with these settings; more: as environment variables.

    program: what to run instead, as arguments for Python.
    """

    def __init__(self, settings: Settings, program: Sequence[str] = AGENT, **more: str) -> None:
        settings.home.mkdir(parents=True, exist_ok=True)
        self.log_file = settings.home / f"agent-{time.monotonic_ns()}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLOOP_")}
        environment |= {
            "DRIFTLOOP_KAFKA_BOOTSTRAP": str(settings.kafka_bootstrap),
            "DRIFTLOOP_NAMESPACE": settings.namespace,
            "DRIFTLOOP_HOME": str(settings.home),
            "DRIFTLOOP_DETECTOR": settings.detector,
            "PYTHONPATH": str(ROOT),
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                env=environment | more,
                stdout=log,
                stderr=log,
                cwd=settings.home,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def says(self, words: str, seconds: float = 40) -> None:
        """Return once its log holds the words."""
        eventually(lambda: words in self.log or self._has_ended(), seconds, f"{words!r} in {self.log_file}")
        assert words in self.log, self.log

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def exit_code(self, seconds: float = 60) -> int:
        return self.process.wait(timeout=seconds)


def free_port() -> int:
    return next(port for port in range(20_000 + os.getpid() % 10_000, 60_000) if is_free(port))


def send(settings: Settings, messages: Iterable[tuple[bytes | None, bytes | None]], **how: Any) -> None:
    """Keys and values to `activity`, acknowledged; how: configuration of a plain producer."""
    producer = Producer(producer_config(settings, **{"message.max.bytes": 33_000_000} | how))
    for key, value in messages:
        while True:
            try:
                producer.produce(settings.topic(ACTIVITY), key=key, value=value)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def read(settings: Settings, topic: Topic) -> list[Any]:
    """All records of the topic as they are, partition by partition."""
    consumer = Consumer(reader_config(settings, **{"enable.partition.eof": True, "auto.offset.reset": "earliest"}))
    name, found = settings.topic(topic), []
    open_ends = set(consumer.list_topics(name, timeout=10).topics[name].partitions)
    consumer.assign([TopicPartition(name, partition, 0) for partition in open_ends])
    while open_ends:
        message = consumer.poll(10)
        assert message is not None, f"{name} gave nothing"
        if message.error() is None:
            found.append(message)
        else:
            open_ends.discard(message.partition())
    consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def behind(settings: Settings) -> int:
    """Records of `activity` that the agent has not committed."""
    consumer = Consumer(client_config(settings, **{"group.id": f"{settings.namespace}{AGENT_GROUP}"}))
    name = settings.topic(ACTIVITY)
    try:
        places = [TopicPartition(name, number) for number in range(ACTIVITY.partitions)]
        committed = consumer.committed(places, timeout=10)
        return sum(consumer.get_watermark_offsets(place, timeout=10)[1] - max(0, place.offset) for place in committed)
    finally:
        consumer.close()


def drift_ids(settings: Settings) -> list[str]:
    """Ids on the drift topic, as often as they are there."""
    return [logged.envelope.id for logged in read_events(settings, [DRIFT]) if logged is not None]


def truth(settings: Settings) -> Outcome:
    """What the records on `activity` lead to if nothing ever goes wrong."""
    by_partition: dict[int, list[Record]] = {}
    for message in read(settings, ACTIVITY):
        record = Record(message.offset(), message.timestamp()[1] / 1000, message.key(), message.value())
        by_partition.setdefault(message.partition(), []).append(record)
    whole = Outcome()
    for partition, records in by_partition.items():
        processor = Processor(
            settings.topic(ACTIVITY),
            partition,
            model=settings.model,
            load=lambda _: None,
            fresh=DETECTORS[settings.detector],
        )
        outcome = processor.process(chunk_of(records))
        whole.drifts += outcome.drifts
        whole.rejections += outcome.rejections
    return whole
