"""Which version serves now: a follower of the compacted `current-model` topic, for whoever needs to know.

It joins no group and commits nothing. While the broker is away the last known answer stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.envelope import decode
from schemas.errors import Reject
from schemas.events import ModelDeployed
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL
from streams.kafka import reader_config

log = structlog.get_logger()


class CurrentModel:
    """A thread that follows the pointer of one model. on_change: called in that thread with each new value.

    Of what is on the topic at the start, only the last counts: a newcomer does not live through what served before.
    """

    def __init__(self, settings: Settings, on_change: Callable[[ModelDeployed | None], None] = lambda _: None) -> None:
        self.settings = settings
        self.on_change = on_change
        self.latest: ModelDeployed | None = None
        self.caught_up = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="current-model", daemon=True)

    def start(self) -> CurrentModel:
        """Begin to follow; `caught_up` is set once everything that was there at the start has been read."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(timeout=5)

    @property
    def version(self) -> str | None:
        """The version that serves, if any."""
        return None if self.latest is None else self.latest.version

    def _follow(self) -> None:
        topic = self.settings.topic(CURRENT_MODEL)
        while not self._stopping.is_set():
            consumer = Consumer(
                reader_config(self.settings, **{"auto.offset.reset": "earliest", "enable.partition.eof": True})
            )
            try:
                consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=5)  # raises if there is no such topic
                consumer.assign([TopicPartition(topic, 0, 0)])
                self._read(consumer)
            except KafkaException as error:
                log.warning("current-model.waiting", topic=topic, error=str(error.args[0]))
                self._stopping.wait(2)
            finally:
                consumer.close()

    def _read(self, consumer: Consumer) -> None:
        known: list[ModelDeployed | None] = []  # until the end is reached: the last value, if there is one
        reached = False
        while not self._stopping.is_set():
            message = consumer.poll(0.5)
            if message is None:
                continue
            if message.error() is None:
                if message.key() == self.settings.model.encode():
                    known = _value(message.value(), message.headers()) or known
            elif message.error().code() == KafkaError._PARTITION_EOF:
                # No offset tells: transactions, aborted ones too, leave markers that are never delivered.
                reached = True
            if reached and known:
                self.latest = known.pop()
                self.on_change(self.latest)
            if reached:
                self.caught_up.set()


def _value(value: bytes | None, headers: list[tuple[str, bytes]] | None) -> list[ModelDeployed | None]:
    """What a record says, nothing if it cannot be read."""
    if value is None:
        return [None]
    try:
        event = decode(None, value, headers).event
    except Reject as reject:
        log.warning("current-model.unreadable", reason=str(reject))
        return []
    return [event] if isinstance(event, ModelDeployed) else []
