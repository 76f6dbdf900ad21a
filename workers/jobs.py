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
from schemas.failpoints import reach
from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_BYTES, Topic, dead_letters
from streams.deadletters import dead_letter_headers, fitting
from streams.kafka import backoff, client_config, is_transient, producer_config
from streams.records import Record
from workers.health import Health

log = structlog.get_logger()

UNREADY_S = 60.0  # of the same failure, after which /ready says no
_POLL_S = 0.3
# One try of a transactional call; well below the 30 s without a beat after which /live says no.
_TRANSACTION_S = 5
# A transaction that the broker refuses so often, while it answers, will be refused for ever: a topic is missing.
_REFUSALS = 2
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
    mends: bool  # whether `idle` is asked, too, while an event waits to be tried again

    def assigned(self) -> None:
        """The events are ours from now on; another worker may have had them, and has done what we have not seen."""

    def start(self, envelope: Envelope) -> Job:
        """Begin the job for an event. Raises Retry or Reject."""

    def idle(self) -> Job | None:
        """A job for which no event is needed, asked for while none is in work; None if there is nothing to do."""

    def committed(self, outputs: Sequence[Output]) -> None:
        """The outputs are on their topics, once."""


class _Stopping(Exception):
    """SIGTERM while the broker is away: nothing is committed, nothing is lost."""


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
        self.producer = Producer(
            producer_config(
                settings,
                **{
                    "transactional.id": slot,
                    "message.max.bytes": DEAD_LETTER_BYTES,
                    # What a frozen broker does not answer blocks a transactional call for so long, whatever it asks
                    "socket.timeout.ms": 10_000,
                    "topic.metadata.propagation.max.ms": 5_000,  # topics are made beforehand
                },
            )
        )
        self.job: Job | None = None
        self.message: Message | None = None
        self.held: Message | None = None  # waits to be tried again while the handler mends
        self.joined = False
        self.regained = False
        self.again_at = 0.0
        self.waits = backoff(1, 20)
        self.failing_since: float | None = None

    def run(self) -> None:
        """Until `stopping`. Raises Stop if another instance has taken over or a transaction's end is not known."""
        try:
            self._call(self.producer.init_transactions)
            self.consumer.subscribe(
                [self.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
            )
            self.health.doing = "idle"
            self.health.ready = self._ready
            while not self.stopping.is_set():
                self.health.beat()
                self._turn()
        except _Stopping:
            log.info("stopped.while-waiting")
        except KafkaException as error:
            raise Stop(f"Kafka refuses us: {error.args[0].str()}") from error
        finally:
            self._drop()
            self.consumer.close()

    def _ready(self) -> bool:
        """Not while what has to be done cannot be done for long; /live is another question: a restart mends nothing."""
        failing = self.failing_since is not None and time.monotonic() - self.failing_since > UNREADY_S
        return self.joined and not failing

    def _turn(self) -> None:
        message = self.consumer.poll(_POLL_S)
        if message is not None and message.error() is not None:
            self._complain(message.error())
            return
        if self.regained:  # a pause may outlive the assignment that it was made in
            self.regained = False
            self._resume()
        if message is not None and self.message is None and self._gives_way():
            self._drop()
        if message is not None and (self.job or self.message or self.held) is not None:
            # Fetched before the pause took hold, or while a job between events runs: it comes again afterwards.
            self.consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
            message = None
            self.stopping.wait(_POLL_S)  # or it would come again at once
        if message is not None:
            self.message = message
            self.again_at = 0.0  # what waits is another thing
            self._pause()
        try:
            if self.job is None:
                self._begin()
            if self.job is not None and (outputs := self.job.poll()) is not None:
                self._finish(outputs)
        except Retry as error:
            self.job = None
            self.failing_since = self.failing_since or time.monotonic()
            wait = next(self.waits)
            self.again_at = time.monotonic() + wait
            self.health.doing = f"waiting: {error}"
            log.warning("job.retry", wait_s=round(wait, 1), error=str(error))
        except Reject as reject:
            self.job = None
            self._dead_letter(reject)

    def _gives_way(self) -> bool:
        """Whether a job between events only waits, and can as well be begun again after the event that has come."""
        return bool(getattr(self.job, "gives_way", bool)())

    def _begin(self) -> None:
        waits = time.monotonic() < self.again_at
        if waits and self.message is not None and self.handler.mends:
            self.message, self.held = None, self.message
        elif not waits and self.message is None:
            self.message, self.held = self.held, None
        if waits and self.held is None:
            return
        if self.message is None:
            if self.consumer.assignment():  # whoever owns no partition has nothing to decide
                self.job = self.handler.idle()
                if self.job is None and self.held is None:
                    self.failing_since = None
            return
        envelope = decode(self.message.key(), self.message.value(), self.message.headers())
        log.info("job.starting", id=envelope.id, kind=type(envelope.event).__name__, subject=envelope.subject)
        self.health.doing = f"working on {envelope.id}"
        self.job = self.handler.start(envelope)

    def _finish(self, outputs: Sequence[Output]) -> None:
        self._transact([(self.settings.topic(output.topic), *_encoded(self.settings, output)) for output in outputs])
        self.handler.committed(outputs)
        self._forget()
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
        record, cut = fitting(record)
        headers = dead_letter_headers(self.topic, message.partition(), record, reject.reject_class, reject.reason + cut)
        log.warning("event.rejected", offset=record.offset, reject_class=reject.reject_class, reason=reject.reason)
        topic = self.settings.topic(dead_letters(self.handler.topic))
        self._transact([(topic, record.key, record.value, headers)])
        self._forget()

    def _transact(self, records: Sequence[tuple[str, bytes | None, bytes | None, Any]]) -> None:
        """Records and the consumed offset, all or none. Raises Stop if that cannot be, _Stopping on SIGTERM."""
        if not records and self.message is None:
            return
        refusals = 0
        while (error := self._tried(records)) is not None:
            refusals += not is_transient(error)
            if refusals >= _REFUSALS:
                raise Stop(f"the broker answers, yet refuses the transaction: {error.str()}")
            self._wait()

    def _forget(self) -> None:
        """The next event may come, unless one is held."""
        self.job = None
        self.message = None
        if self.held is not None:
            return
        self.failing_since = None
        self.waits = backoff(1, 20)
        self.health.doing = "idle"
        self._resume()

    def _tried(self, records: Sequence[tuple[str, bytes | None, bytes | None, Any]]) -> KafkaError | None:
        """None once the transaction is committed; the error if it is aborted and can be tried again. Raises Stop."""
        try:
            self.producer.begin_transaction()
            for topic, key, value, headers in records:
                self.producer.produce(topic, key=key, value=value, headers=headers)
            reach("jobs.emitted")
            # A job between events moves no offset, but names it all the same: so the group fences a worker that slept.
            if behind := self._behind():
                self.producer.send_offsets_to_transaction(
                    behind, self.consumer.consumer_group_metadata(), _TRANSACTION_S
                )
            reach("jobs.before-commit")
            self._call(self.producer.commit_transaction)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            log.warning("transaction.failed", error=cause.str(), abort=cause.txn_requires_abort())
            if (
                cause.fatal()
                or cause.code() in _TAKEN_AWAY
                or not (cause.txn_requires_abort() or cause.retriable() or is_transient(cause))
            ):
                raise Stop(f"the transaction cannot be ended: {cause.str()}") from error
            self.health.beat()
            self._call(self.producer.abort_transaction)
            return cause
        return None

    def _behind(self) -> list[TopicPartition]:
        """The offsets to commit: behind the event in work, or, between events, those that are committed already."""
        if self.message is not None:
            return [TopicPartition(self.message.topic(), self.message.partition(), self.message.offset() + 1)]
        stand = self.consumer.committed(self.consumer.assignment(), timeout=_TRANSACTION_S)
        return [place for place in stand if place.offset >= 0]

    def _call(self, call: Callable[[float], Any]) -> None:
        """A transactional call, repeated while the broker is away. Raises KafkaException, and _Stopping on SIGTERM."""
        while True:
            try:
                call(_TRANSACTION_S)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.fatal() or cause.txn_requires_abort() or not (cause.retriable() or is_transient(cause)):
                    raise
                log.warning("transaction.waiting", error=cause.str())
                self.health.doing = "waiting for Kafka"
                self._wait()
            else:
                return

    def _wait(self) -> None:
        self.health.beat()
        if self.stopping.wait(1):
            raise _Stopping

    def _pause(self) -> None:
        self.consumer.pause(self.consumer.assignment())

    def _resume(self) -> None:
        self.consumer.resume(self.consumer.assignment())

    def _assigned(self, _: Consumer, __: Sequence[TopicPartition]) -> None:
        self.joined = self.regained = True
        self.handler.assigned()

    def _revoked(self, _: Consumer, __: Sequence[TopicPartition]) -> None:
        self.joined = False
        self._drop()

    def _drop(self) -> None:
        if self.job is not None:
            log.info("job.cancelled")
            self.job.cancel()
        self.job = None
        self.message = self.held = None

    def _complain(self, error: KafkaError) -> None:
        # The consumer tells that it is fenced by a code, not by fatal().
        if error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
            raise Stop(f"another worker runs in this slot, or the group refuses us: {error.str()}")
        if error.code() != KafkaError._PARTITION_EOF:
            log.warning("kafka.error", error=error.str())


def _encoded(settings: Settings, output: Output) -> tuple[bytes, bytes | None, Any]:
    if output.event is None:
        return settings.model.encode(), None, []
    return encode(output.event)
