"""The rig of every measurement on Kafka: a broker of its own, cores apart, filled topics, and agents seen from outside.

The consumer that is measured has the last core to itself; the broker, and this program, have the others.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy.local.ports import is_free
from deploy.local.stack import Stack
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP, AGENT_STATE, DRIFT, TOPICS, Topic
from streams import topics
from streams.kafka import client_config, producer_config, reader_config
from streams.producer import messages
from streams.recording import Recording
from tests.integration.agent_process import AGENT, Agent

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
START_TS = 1.7e9
_PORTS = iter(range(20_000 + os.getpid() % 10_000, 32_000))  # below those that the system gives to clients


def cores() -> list[int]:
    """Those that this process may use; none where the system cannot pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


ALL_CORES = cores()
CONSUMERS, OTHERS = ALL_CORES[-1:], ALL_CORES[:-1] or ALL_CORES


@contextmanager
def pinned(to: list[int]) -> Iterator[None]:
    """What is started inside, threads or processes, has these cores; outside as before."""
    if not to:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Rig:
    """A broker in a folder of its own. `settings(name)` has the topics of that namespace."""

    def __init__(self, home: Path, bootstrap: str) -> None:
        self.home = home
        self.bootstrap = bootstrap
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def settings(self, name: str, **more: object) -> Settings:
        return Settings(
            _env_file=None,
            home=self.home / "agents" / name,
            namespace=f"{name}.",
            kafka_bootstrap=self.bootstrap,
            **more,
        )

    def fill(self, settings: Settings, recordings: list[Recording], batch: int = 1) -> int:
        """Make the topics and send the recordings to `activity`, devices spread evenly. Returns how many messages."""
        topics.create(settings)
        return send(settings, recordings, messages(recordings, batch))

    def reset(self, settings: Settings) -> None:
        """All as if no agent had ever run: everything but `activity` made anew."""
        group = f"{settings.namespace}{AGENT_GROUP}"
        for future in self.admin.delete_consumer_groups([group]).values():
            with suppress(KafkaException):  # there was none
                future.result()
        others = [settings.topic(topic) for topic in TOPICS if topic is not ACTIVITY]
        for future in self.admin.delete_topics(others, operation_timeout=30).values():
            future.result()
        while set(others) & self.admin.list_topics(timeout=10).topics.keys():
            time.sleep(0.05)
        topics.create(settings)

    def bytes_of(self, settings: Settings, topic: Topic) -> int:
        """Size of a topic's segments on the broker's disk."""
        folders = (self.home / "kafka" / "data").glob(f"{settings.topic(topic)}-*")
        return sum(file.stat().st_size for folder in folders for file in folder.glob("*.log"))


@contextmanager
def rig() -> Iterator[Rig]:
    """A fresh broker on the cores that no consumer has, gone with its data in the end."""
    with tempfile.TemporaryDirectory(prefix="driftloop-bench-") as folder:
        home = Path(folder).resolve()
        stack = Stack(home, Settings(_env_file=None, home=home, kafka_bootstrap=None))
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the broker would stay
        try:
            with pinned(OTHERS):
                address = stack.up([], say, services={"kafka"})["DRIFTLOOP_KAFKA_BOOTSTRAP"]
            yield Rig(home, address)
        finally:
            stack.down()
            signal.signal(signal.SIGTERM, before)


def say(words: str) -> None:
    """Progress, for the person who waits."""
    print(f"  {words}", file=sys.stderr, flush=True)


def send(settings: Settings, recordings: Iterable[Recording], outgoing: Iterable[tuple[bytes, bytes]]) -> int:
    """Messages to `activity`; the n-th device to partition n modulo their number. Returns how many."""
    partition_of = {
        recording.device.encode(): number % ACTIVITY.partitions for number, recording in enumerate(recordings)
    }
    # Idempotent for the order's sake: the first request to a new topic may need a retry, and would be overtaken.
    producer = Producer(producer_config(settings, **{"linger.ms": 20, "batch.num.messages": 5000}))
    topic, count = settings.topic(ACTIVITY), 0
    for key, value in outgoing:
        while True:
            try:
                producer.produce(topic, value, key, partition=partition_of[key])
                break
            except BufferError:
                producer.poll(0.05)
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0, "the broker did not take the readings"
    return count


class Commits:
    """How far the agents' group has come, in messages over all partitions."""

    def __init__(self, settings: Settings) -> None:
        self.consumer = Consumer(client_config(settings, **{"group.id": f"{settings.namespace}{AGENT_GROUP}"}))
        topic = settings.topic(ACTIVITY)
        self.places = [TopicPartition(topic, partition) for partition in range(ACTIVITY.partitions)]

    def committed(self) -> int:
        return sum(max(0, place.offset) for place in self.consumer.committed(self.places, timeout=30))

    def end(self) -> int:
        return sum(self.consumer.get_watermark_offsets(place, timeout=30)[1] for place in self.places)

    def until(self, share: float, seconds: float, agents: list[BenchAgent]) -> None:
        """Return once so much of what is there now is committed."""
        wanted = share * self.end()
        wait_until(lambda: self.committed() >= wanted, seconds, f"{share:.0%} committed", agents)

    def close(self) -> None:
        self.consumer.close()


class BenchAgent(Agent):
    """An agent's process: when it is ready, what it has spent, what it holds."""

    def __init__(self, settings: Settings, program: Sequence[str] = AGENT, **more: str) -> None:
        # One that was given out is not free, though nobody may listen there yet.
        self.port = next(port for port in _PORTS if is_free(port))
        super().__init__(
            settings, program, DRIFTLOOP_HEALTH_PORT=str(self.port), OMP_NUM_THREADS="1", PYTHONFAULTHANDLER="1", **more
        )
        self.seen = psutil.Process(self.process.pid)
        self.client = httpx.Client(timeout=0.5)

    @property
    def ready(self) -> bool:
        try:
            return self.client.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def has_begun(self) -> bool:
        """Whether it has taken readings."""
        try:
            text = self.client.get(f"http://127.0.0.1:{self.port}/metrics").text
        except httpx.HTTPError:
            return False
        return re.search(r"^driftloop_readings_total\S* [1-9]", text, re.MULTILINE) is not None

    @property
    def cpu_s(self) -> float:
        spent = self.seen.cpu_times()
        return float(spent.user + spent.system)

    @property
    def rss_mb(self) -> float:
        return float(self.seen.memory_info().rss / 1e6)


@contextmanager
def agents(
    settings: Settings, count: int = 1, to: list[int] | None = None, program: Sequence[str] = AGENT, **more: str
) -> Iterator[list[BenchAgent]]:
    """So many agents on the consumers' core; each has a home of its own. What still runs in the end is stopped."""
    running: list[BenchAgent] = []
    try:
        for number in range(count):
            own = settings.model_copy(update={"home": settings.home / f"agent-{number}"})
            with pinned(CONSUMERS if to is None else to):
                running.append(BenchAgent(own, program, **more))
        yield running
    finally:
        for agent in running:
            if agent.process.poll() is None:
                with suppress(Exception):
                    agent.terminate()
            if agent.process.poll() is None:
                agent.kill()


def wait_until(true: Callable[[], bool], seconds: float, what: str, running: Iterable[BenchAgent] = ()) -> None:
    """Return once it is true. Raises RuntimeError where that takes too long, or one of the agents has ended."""
    deadline = time.monotonic() + seconds
    while not true():
        for agent in running:
            if agent.process.poll() is not None:
                raise RuntimeError(f"an agent ended with {agent.process.returncode}:\n{agent.log[-2000:]}")
        if time.monotonic() > deadline:
            for agent in running:  # where each of its threads is
                agent.process.send_signal(signal.SIGABRT)
                agent.process.wait()
            logs = "\n".join(agent.log[-8000:] for agent in running)
            raise RuntimeError(f"not within {seconds:g} s: {what}\n{logs}")
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How the agents worked off a topic. share_per_s: of the topic's messages; cpu_s: for all of them."""

    share_per_s: float
    cpu_s: float
    seconds: float


def catch_up(
    commits: Commits, running: list[BenchAgent], *, share: float = 0.95, to_the_end: bool = True, seconds: float = 600
) -> CatchUp:
    """From the first readings that the agents take until all is committed, or `share` of it; as the peers are measured.

    The speed is taken when `share` is committed, as theirs is: the last few wait for the agent's timer. seconds: how
    long it may take.
    """
    end = commits.end()
    wait_until(lambda: all(agent.ready for agent in running), 120, "ready", running)
    before = commits.committed()
    wait_until(lambda: any(agent.has_begun for agent in running), seconds, "a first reading", running)
    began, spent = time.perf_counter(), sum(agent.cpu_s for agent in running)
    reached: tuple[float, int] | None = None
    at = before

    def done() -> bool:
        nonlocal reached, at
        at, now = commits.committed(), time.perf_counter()
        if reached is None and at >= share * end:
            reached = now, at
        return at >= end if to_the_end else reached is not None

    wait_until(done, seconds, "readings committed", running)
    assert reached is not None
    until, by_then = reached
    worked = max(at - before, 1)
    cpu = (sum(agent.cpu_s for agent in running) - spent) / worked * end
    return CatchUp(max(by_then - before, 0) / end / (until - began), cpu, until - began)


def records(settings: Settings, topic: Topic) -> Iterator[tuple[bytes, bytes | None, float]]:
    """Key, value and timestamp of everything on a topic."""
    reader = Consumer(reader_config(settings, **{"enable.partition.eof": True, "auto.offset.reset": "earliest"}))
    name = settings.topic(topic)
    left = set(reader.list_topics(name, timeout=30).topics[name].partitions)
    reader.assign([TopicPartition(name, partition, 0) for partition in left])
    while left:
        for message in reader.consume(1000, 1.0):
            if message.error() is None:
                yield message.key(), message.value(), message.timestamp()[1] / 1000
            else:
                left.discard(message.partition())
    reader.close()


def drifts(settings: Settings) -> int:
    """Different drift events on the topic."""
    reader = Consumer(reader_config(settings, **{"enable.partition.eof": True, "auto.offset.reset": "earliest"}))
    reader.assign([TopicPartition(settings.topic(DRIFT), 0, 0)])
    ids: set[bytes] = set()
    while True:
        for message in reader.consume(1000, 1.0):
            if message.error() is not None:
                reader.close()
                return len(ids)
            ids.add(dict(message.headers() or ())["ce_id"])


def state_sizes(settings: Settings) -> dict[bytes, int]:
    """Bytes of each device's last saved state."""
    return {key: len(key) + len(value or b"") for key, value, _ in records(settings, AGENT_STATE)}
