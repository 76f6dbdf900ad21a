"""One job at a time: consume an event, do minutes of work for it, and end in one transaction.

While a job runs the partition is paused and the consumer keeps polling, so the group stays whole. The job's events and
the consumed offset become visible together or not at all; after a crash the event comes again and its effects, which
carry its id, are found instead of made twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event as Flag
from threading import Thread
from typing import Any, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.envelope import Envelope, decode, encode
from schemas.errors import Reject, Retry, Stop
from schemas.settings import Settings
from schemas.topology import Topic, dead_letters
from streams.deadletters import dead_letter_headers
from streams.gate import Record
from streams.kafka import backoff, client_config, is_transient, producer_config
from workers.health import Health

log = structlog.get_logger()

_POLL_S = 0.3
_TRANSACTION_S = 30
# The group has given our partition to somebody else: the event is theirs now, and so is its transaction.
_TAKEN_AWAY = {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.FENCED_INSTANCE_ID}


@dataclass(frozen=True, slots=True)
class Output:
    """An event for a topic; None in its place is a tombstone for the model's key."""

    topic: Topic
    event: Envelope | None


class Job(Protocol):
    """Work that goes on beside the poll loop."""

    def poll(self) -> Sequence[Output] | None:
        """None while it runs, then its outputs. Raises Retry (again later), Reject (dead-letter) or Stop."""

    def cancel(self) -> None:
        """End it now; no further visible step."""


class Handler(Protocol):
    """What a worker does with the events of its topic."""

    name: str
    topic: Topic
    group: str

    def start(self, envelope: Envelope) -> Job:
        """Begin the job for an event."""

    def idle(self) -> Job | None:
        """A job for which no event is needed, asked for while none waits; None if there is nothing to do."""

    def committed(self, outputs: Sequence[Output]) -> None:
        """The outputs are on their topics, once."""


class Done:
    """A job whose outputs are known at once."""

    def __init__(self, *outputs: Output) -> None:
        self.outputs = outputs

    def poll(self) -> Sequence[Output]:
        """The outputs."""
        return self.outputs

    def cancel(self) -> None:
        """Nothing runs."""


class ThreadJob:
    """A job in a thread, for work that mostly waits; `work` is given a question that tells when to give up."""

    def __init__(self, work: Callable[[Callable[[], bool]], Sequence[Output]]) -> None:
        self._cancelled = Flag()
        self._outputs: Sequence[Output] | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], bool]], Sequence[Output]]) -> None:
        try:
            self._outputs = work(self._cancelled.is_set)
        except BaseException as error:  # noqa: BLE001  raised again in the loop's thread, whatever it is
            self._error = error

    def poll(self) -> Sequence[Output] | None:
        """See Job."""
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return self._outputs or ()

    def cancel(self) -> None:
        """See Job; waits for the step under way."""
        self._cancelled.set()
        self._thread.join(timeout=20)


class JobLoop:
    """The poll loop of a worker."""

    def __init__(self, settings: Settings, handler: Handler, health: Health, stopping: Flag) -> None:
        self.settings = settings
        self.handler = handler
        self.health = health
        self.stopping = stopping
        self.topic = settings.topic(handler.topic)
        slot = f"{settings.namespace}{handler.group}-{settings.slot}"
        # Static membership: a worker that was killed and comes back has its partition at once.
        self.consumer = Consumer(
            client_config(
                settings,
                **{
                    "group.id": f"{settings.namespace}{handler.group}",
                    "group.instance.id": slot,
                    "session.timeout.ms": 10_000,
                    "heartbeat.interval.ms": 2_000,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "isolation.level": "read_committed",
                },
            )
        )
        self.producer = Producer(producer_config(settings, **{"transactional.id": slot}))
        self.job: Job | None = None
        self.message: Message | None = None
        self.joined = False
        self.again_at = 0.0
        self.waits = backoff(1, 20)

    def run(self) -> None:
        """Until `stopping`. Raises Stop if another instance has taken over or a transaction's end is not known."""
        self._call(self.producer.init_transactions, _TRANSACTION_S)
        self.consumer.subscribe([self.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        self.health.doing = "idle"
        self.health.ready = lambda: self.joined
        try:
            while not self.stopping.is_set():
                self.health.beat()
                self._turn()
        finally:
            self._drop()
            self.consumer.close()

    def _turn(self) -> None:
        message = self.consumer.poll(_POLL_S)
        if message is not None and message.error() is not None:
            self._complain(message.error())
            return
        if message is not None and (self.job is not None or self.message is not None):
            # Fetched before the pause took hold: it comes again afterwards.
            self.consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
            message = None
        if message is not None:
            self.message = message
            self.consumer.pause(self.consumer.assignment())
        try:
            if self.job is None:
                self._begin()
            if self.job is not None and (outputs := self.job.poll()) is not None:
                self._finish(outputs)
        except Retry as error:
            self.job = None
            wait = next(self.waits)
            self.again_at = time.monotonic() + wait
            self.health.doing = f"waiting: {error}"
            log.warning("job.retry", wait_s=round(wait, 1), error=str(error))
        except Reject as reject:
            self.job = None
            self._dead_letter(reject)

    def _begin(self) -> None:
        if time.monotonic() < self.again_at:
            return
        if self.message is None:
            if self.consumer.assignment():  # whoever owns no partition has nothing to decide
                self.job = self.handler.idle()
            return
        envelope = decode(self.message.key(), self.message.value(), self.message.headers())
        log.info("job.starting", id=envelope.id, kind=type(envelope.event).__name__, subject=envelope.subject)
        self.health.doing = f"working on {envelope.id}"
        self.job = self.handler.start(envelope)

    def _finish(self, outputs: Sequence[Output]) -> None:
        self._transact([(self.settings.topic(output.topic), *_encoded(self.settings, output)) for output in outputs])
        self.handler.committed(outputs)
        for output in outputs:
            if output.event is not None:
                log.info("event.published", topic=output.topic.name, id=output.event.id)

    def _dead_letter(self, reject: Reject) -> None:
        if self.message is None:
            raise Stop(f"a job without an event was rejected: {reject}")
        message = self.message
        _, timestamp = message.timestamp()
        record = Record(
            message.offset(), timestamp / 1000, message.key(), message.value(), tuple(message.headers() or ())
        )
        headers = dead_letter_headers(self.topic, message.partition(), record, reject.reject_class, reject.reason)
        log.warning("event.rejected", offset=record.offset, reject_class=reject.reject_class, reason=reject.reason)
        topic = self.settings.topic(dead_letters(self.handler.topic))
        self._transact([(topic, record.key, record.value, headers)])

    def _transact(self, records: Sequence[tuple[str, bytes | None, bytes | None, Any]]) -> None:
        """Records and the consumed offset in one transaction; then the next event may come."""
        if records or self.message is not None:
            while not self._tried(records):
                self.stopping.wait(1)
                if self.stopping.is_set():
                    return
        self.job = None
        self.message = None
        self.waits = backoff(1, 20)
        self.health.doing = "idle"
        self.consumer.resume(self.consumer.assignment())

    def _tried(self, records: Sequence[tuple[str, bytes | None, bytes | None, Any]]) -> bool:
        """Whether the transaction is committed; if not, it can be tried again."""
        try:
            self.producer.begin_transaction()
            for topic, key, value, headers in records:
                self.producer.produce(topic, key=key, value=value, headers=headers)
            if self.message is not None:
                behind = TopicPartition(self.message.topic(), self.message.partition(), self.message.offset() + 1)
                self.producer.send_offsets_to_transaction(
                    [behind], self.consumer.consumer_group_metadata(), _TRANSACTION_S
                )
            self._call(self.producer.commit_transaction, _TRANSACTION_S)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            log.warning("transaction.failed", error=cause.str(), abort=cause.txn_requires_abort())
            if (
                cause.fatal()
                or cause.code() in _TAKEN_AWAY
                or not (cause.txn_requires_abort() or cause.retriable() or is_transient(cause))
            ):
                raise Stop(f"the transaction cannot be ended: {cause.str()}") from error
            self._call(self.producer.abort_transaction, _TRANSACTION_S)
            return False
        return True

    def _call(self, call: Callable[[float], Any], timeout: float) -> None:
        """A transactional call, repeated while the broker is away."""
        while True:
            try:
                call(timeout)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.fatal() or cause.txn_requires_abort() or not (cause.retriable() or is_transient(cause)):
                    raise
                log.warning("transaction.waiting", error=cause.str())
                self.health.beat()
                if self.stopping.wait(1):
                    raise Stop("stopped while the broker was away") from error
            else:
                return

    def _assigned(self, _: Consumer, __: Sequence[TopicPartition]) -> None:
        self.joined = True

    def _revoked(self, _: Consumer, __: Sequence[TopicPartition]) -> None:
        self.joined = False
        self._drop()

    def _drop(self) -> None:
        if self.job is not None:
            log.info("job.cancelled")
            self.job.cancel()
        self.job = None
        self.message = None

    def _complain(self, error: KafkaError) -> None:
        if error.fatal():
            raise Stop(f"another worker runs in this slot, or the group refuses us: {error.str()}")
        if error.code() != KafkaError._PARTITION_EOF:
            log.warning("kafka.error", error=error.str())


def _encoded(settings: Settings, output: Output) -> tuple[bytes, bytes | None, Any]:
    if output.event is None:
        return settings.model.encode(), None, []
    return encode(output.event)
