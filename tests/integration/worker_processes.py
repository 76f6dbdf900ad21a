"""Workers as real processes, and the topics as anyone reads them: what the workers' tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from schemas.envelope import Envelope, encode
from schemas.events import CandidateScore, ModelRegistered, TrainingWindow
from schemas.settings import Settings
from schemas.topology import Topic
from streams.eventlog import read_events
from streams.features import FEATURES
from streams.kafka import producer_config, reader_config
from workers.health import Health
from workers.jobs import Handler, JobLoop

ROOT = Path(__file__).parents[2]
_Answer = TypeVar("_Answer")


def eventually(ask: Callable[[], _Answer], seconds: float = 30, what: object = "it") -> _Answer:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what() if callable(what) else what} did not come true in time"
        time.sleep(0.1)
    return answer


def send(settings: Settings, topic: Topic, *events: Envelope) -> None:
    """Each event to its topic, acknowledged."""
    send_raw(settings, topic, *(encode(event) for event in events))


def send_raw(settings: Settings, topic: Topic, *records: tuple[bytes | None, bytes | None, list]) -> None:
    producer = Producer(producer_config(settings))
    for key, value, headers in records:
        producer.produce(settings.topic(topic), key=key, value=value, headers=headers)
    assert producer.flush(10) == 0


def events(settings: Settings, *topics: Topic) -> list[Envelope]:
    """What a read_committed consumer sees now."""
    return [logged.envelope for logged in read_events(settings, topics) if logged is not None]


def records(settings: Settings, topic: Topic) -> list[Message]:
    """All committed records of the topic's first partition, as they are."""
    consumer = Consumer(reader_config(settings, **{"enable.partition.eof": True}))
    consumer.assign([TopicPartition(settings.topic(topic), 0, 0)])
    found = []
    while (message := consumer.poll(10)) is not None and message.error() is None:
        found.append(message)
    consumer.close()
    return found


def consumed(settings: Settings, topic: Topic, group: str) -> int:
    """The group's committed offset; negative before the first."""
    consumer = Consumer(reader_config(settings, **{"group.id": f"{settings.namespace}{group}"}))
    try:
        return consumer.committed([TopicPartition(settings.topic(topic), 0)], timeout=10)[0].offset
    finally:
        consumer.close()


def environment(settings: Settings) -> dict[str, str]:
    """The settings as a child process gets them."""
    plain = settings.model_dump(mode="json", exclude_defaults=True)
    set_ = {f"DRIFTLOOP_{name.upper()}": str(value) for name, value in plain.items() if value is not None}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRIFTLOOP_", "MLFLOW_"))}
    return clean | set_ | {"PYTHONPATH": str(ROOT)}


@contextmanager
def running(settings: Settings, *command: str, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours until the block ends; `command` follows `python`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(settings) | environ,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def worker(settings: Settings, name: str, log: Path, **environ: str):
    """`driftloop run name` until the block ends; environ: what the settings cannot say."""
    return running(settings, "-m", "workers.cli", "run", name, log=log, **environ)


class Running:
    """A loop in a thread."""

    def __init__(self, settings: Settings, handler: Handler) -> None:
        self.stopping = threading.Event()
        self.health = Health("test")
        self.loop = JobLoop(settings, handler, self.health, self.stopping)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def end(self) -> float:
        """Seconds that a stop took."""
        begun = time.monotonic()
        self.stopping.set()
        self.thread.join(40)
        assert not self.thread.is_alive()
        return time.monotonic() - begun


@contextmanager
def loop(settings: Settings, handler: Handler) -> Iterator[Running]:
    made = Running(settings, handler)
    try:
        yield made
    finally:
        made.end()


def changed(settings: Settings, **fields: object) -> Settings:
    return settings.model_copy(update=fields)


def of_type(found: Sequence[Envelope], kind: type[_Answer]) -> list[_Answer]:
    """The events of a kind among the envelopes."""
    return [each.event for each in found if isinstance(each.event, kind)]


def registered_version(settings: Settings, event: str, seed: int = 0, profile: bytes | None = None) -> ModelRegistered:
    """A small model in MLflow, as the retrain worker leaves one."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from workers import registry

    rng = np.random.default_rng(seed)
    table, labels = rng.standard_normal((60, 5)), np.array(["sit", "wlk"])[rng.integers(0, 2, 60)]
    pipeline = make_pipeline(LogisticRegression()).fit(table, labels)
    client = registry.connect(settings)
    draft = ModelRegistered(
        model=settings.model,
        version="0",
        run_id="",
        winner="logistic-regression",
        candidates=[CandidateScore(name="logistic-regression", recent=0.9, anchor=None, fit_seconds=0.1)],
        window=TrainingWindow(topic="activity", ranges=[], rows=0, sha256=""),
        digest="",
        caused_by=[event],
        profile=None if profile is None else "profile.json",
    )
    training = registry.Training(
        event, 0, "promoted", "", {"seed": seed}, {"data.topic": "activity"}, {"recent": []}, [], {}
    )
    winner = registry.Winner(pipeline, FEATURES[:5], table, profile)
    return registry.register(client, settings.model, training, winner, draft, registry.signing_key(settings))
