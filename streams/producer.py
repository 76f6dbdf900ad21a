"""Recordings as readings on Kafka: encoded as the contract has it, sent so that every single one is accounted for."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import FrameType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.activity import (
    ACTIVITIES,
    CHANNEL_NAMES,
    CHANNELS,
    MAX_READINGS_PER_MESSAGE,
    Reading,
    ReadingBatch,
    field_of,
)
from schemas.errors import UserError
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.kafka import is_transient, producer_config
from streams.recording import Recording, spans
from streams.windows import NO_LABEL, Floats, Ints

log = structlog.get_logger()

DELIVERY_TIMEOUT_S: Final = 60.0
_DIGITS: Final = 6  # µrad and µg; below what the sensors resolve
_CHUNK: Final = 4_096  # readings of one device turned into Python values at a time
_POLL_EVERY: Final = 512  # messages between two looks at delivery reports
_FIELDS: Final = tuple(map(field_of, CHANNEL_NAMES))
_REQUIRED: Final = {field_of(channel.name) for channel in CHANNELS if channel.required}
# Errors after which every further message would fail the same way.
_HOPELESS: Final = {
    KafkaError._MSG_TIMED_OUT,
    KafkaError._FATAL,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


@dataclass(slots=True)
class Produced:
    """What became of the readings, in readings but for `messages`.

    planned: all that there were to send. readings: of those, tried, in so many messages. delivered: of those,
    acknowledged by the broker. failed: the others of those, with the reasons. interrupted: by a signal.
    """

    planned: int = 0
    readings: int = 0
    messages: int = 0
    delivered: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every reading is known to be on the topic."""
        return self.delivered == self.planned and not self.failed


class _Outgoing(NamedTuple):
    """One message. ts: event time of its last reading, when a sensor could have sent it."""

    ts: float
    key: bytes
    value: bytes
    readings: int


def messages(recordings: Sequence[Recording], batch: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every message in the order of event time, devices interleaved.

    batch 1: one flat reading a message; more: up to so many readings of one device and one trial. Floats have 6 digits;
    an optional channel that is NaN is left out. `seq` counts a device's readings from 0.
    Raises UserError if batch is not 1 to 1,000.
    """
    return ((message.key, message.value) for message in _outgoing(recordings, batch))


def produce(
    settings: Settings,
    recordings: Sequence[Recording],
    *,
    speed: float | None = None,
    batch: int = 1,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda delivered: None,
    delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
) -> Produced:
    """Send the recordings to the activity topic and report what was and was not delivered.

    speed: 1.0 plays by event time in real time, None as fast as Kafka takes it. limit: at most so many readings, the
    first by event time. progress: called now and then with the readings delivered so far. Ends, and reports, when a
    message could not be delivered within delivery_timeout_s (broker away) or on SIGINT or SIGTERM (a second one does
    not wait for what is on its way). Raises UserError for a missing topic and for arguments that cannot work.
    """
    if speed is not None and not 0 < speed < np.inf:
        raise UserError(f"speed {speed}: give a factor above 0, as in 1.0 for real time, or max")
    if limit is not None:
        recordings = _limited(recordings, limit)
    produced = Produced(planned=sum(map(len, recordings)))
    client = _Client(settings, produced, progress, delivery_timeout_s)
    outgoing = _outgoing(recordings, batch)
    with _interrupts() as interrupts:
        began: tuple[float, float] | None = None
        for message in outgoing:
            if speed is not None:
                began = began or (time.monotonic(), message.ts)
                client.wait_until(began[0] + (message.ts - began[1]) / speed, interrupts.pending)
            if interrupts.pending() or client.hopeless or not client.send(message, interrupts.pending):
                break
        client.finish(interrupts.urgent)
        produced.interrupted = interrupts.pending()
    return produced


class _Client:
    """A confluent-kafka producer whose every delivery report is counted."""

    def __init__(
        self, settings: Settings, produced: Produced, progress: Callable[[int], None], delivery_timeout_s: float
    ) -> None:
        self.hopeless = False
        self._topic = settings.topic(ACTIVITY)
        self._produced = produced
        self._progress = progress
        self._last_error = ""
        self._callbacks: dict[int, Callable[[KafkaError | None, Message], None]] = {}
        self._producer = Producer(
            producer_config(
                settings,
                **{
                    "delivery.timeout.ms": round(delivery_timeout_s * 1000),
                    "linger.ms": 20,
                    "compression.type": "lz4",
                    "queue.buffering.max.messages": 50_000,
                    "error_cb": self._errored,
                    "log_level": 0,  # librdkafka would print each failed connection, 20 a second, beside error_cb
                },
            )
        )
        self._check_topic(min(10.0, delivery_timeout_s))

    def send(self, message: _Outgoing, stopping: Callable[[], bool]) -> bool:
        """Hand one message over, waiting while Kafka's queue is full; False if that became pointless."""
        while True:
            try:
                self._producer.produce(
                    self._topic, message.value, message.key, on_delivery=self._callback(message.readings)
                )
            except BufferError:
                self._producer.poll(0.1)
                if self.hopeless or stopping():
                    return False
            except KafkaException as error:  # never entered the queue, so no report will follow
                self._reported(message.readings, error.args[0], None)
                break
            else:
                break
        self._produced.readings += message.readings
        self._produced.messages += 1
        if self._produced.messages % _POLL_EVERY == 0:
            self._producer.poll(0)
            self._progress(self._produced.delivered)
        return not self.hopeless

    def wait_until(self, moment: float, stopping: Callable[[], bool]) -> None:
        """Serve delivery reports until time.monotonic() is at moment."""
        while (left := moment - time.monotonic()) > 0 and not stopping() and not self.hopeless:
            self._producer.poll(min(left, 0.1))
            self._progress(self._produced.delivered)

    def finish(self, urgent: Callable[[], bool]) -> None:
        """Wait for every report; ends by itself, since each message fails at its delivery timeout at the latest."""
        while len(self._producer):
            if urgent():
                self._producer.purge()
            self._producer.poll(0.1)
            self._progress(self._produced.delivered)

    def _callback(self, readings: int) -> Callable[[KafkaError | None, Message], None]:
        # A handful of sizes occur, and a closure for each message would cost a third of the throughput.
        if readings not in self._callbacks:
            self._callbacks[readings] = partial(self._reported, readings)
        return self._callbacks[readings]

    def _reported(self, readings: int, error: KafkaError | None, _: Message | None) -> None:
        if error is None:
            self._produced.delivered += readings
            return
        self._produced.failed += readings
        detail = f" ({self._last_error})" if self._last_error and is_transient(error) else ""
        self._produced.reasons[f"{error.str()}{detail}"] += readings
        self.hopeless = self.hopeless or bool(error.fatal()) or error.code() in _HOPELESS

    def _errored(self, error: KafkaError) -> None:
        # `all brokers down` says less than the error before it.
        if error.code() != KafkaError._ALL_BROKERS_DOWN and error.str() != self._last_error:
            self._last_error = error.str()
            log.warning("produce.error", error=error.str())

    def _check_topic(self, timeout: float) -> None:
        """A missing topic is told at once; a broker that is away is given the delivery timeout to come back."""
        try:
            topic = self._producer.list_topics(self._topic, timeout=timeout).topics[self._topic]
        except KafkaException as error:
            if not is_transient(error.args[0]):
                raise UserError(f"Kafka refuses us: {error.args[0].str()}; check DRIFTLOOP_KAFKA_*") from error
            log.warning("produce.broker-away", error=error.args[0].str())
            return
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise UserError(f"there is no topic {self._topic}; run `driftloop topics create`")


class _Interrupts:
    """Signals received so far."""

    def __init__(self) -> None:
        self.received = 0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        self.received += 1

    def pending(self) -> bool:
        return self.received > 0

    def urgent(self) -> bool:
        return self.received > 1


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """SIGINT and SIGTERM counted instead of raised while inside; only the main thread may have handlers."""
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _limited(recordings: Sequence[Recording], limit: int) -> list[Recording]:
    """The first readings by event time, over all devices."""
    if limit < 0:
        raise UserError(f"limit {limit}: give the number of readings to send, 0 or more")
    kept = np.bincount(_interleaved([recording.ts for recording in recordings])[:limit], minlength=len(recordings))
    return [recording.chosen(slice(0, int(count))) for recording, count in zip(recordings, kept, strict=True)]


def _interleaved(times: Sequence[Floats]) -> Ints:
    """Which recording is next, for every item of all of them by time; equal times in the order given."""
    sources = np.repeat(np.arange(len(times)), [len(ts) for ts in times])
    return np.asarray(sources[np.argsort(np.concatenate([np.empty(0), *times]), kind="stable")])


def _outgoing(recordings: Sequence[Recording], batch: int) -> Iterator[_Outgoing]:
    if not 1 <= batch <= MAX_READINGS_PER_MESSAGE:
        raise UserError(f"batch {batch}: give 1 to {MAX_READINGS_PER_MESSAGE:,} readings a message")
    if batch == 1:
        sources = [_singles(recording) for recording in recordings]
        times = [recording.ts for recording in recordings]
    else:
        parts = [_batch_bounds(recording, batch) for recording in recordings]
        sources = [_batches(recording, bounds) for recording, bounds in zip(recordings, parts, strict=True)]
        times = [
            recording.ts[np.array([end - 1 for _, end in bounds], np.int64)]
            for recording, bounds in zip(recordings, parts, strict=True)
        ]
    return (next(sources[source]) for source in _interleaved(times).tolist())


def _batch_bounds(recording: Recording, batch: int) -> list[tuple[int, int]]:
    """A message names one trial and one activity, so a batch ends with them."""
    return [
        bounds
        for first, last in spans(recording.trials, recording.labels)
        for bounds in pairwise([*range(first, last, batch), last])
    ]


def _columns(recording: Recording, rows: slice) -> list[list[Any]]:
    """Twelve columns of rounded values, None for NaN."""
    values = np.round(recording.values[rows], _DIGITS)
    if np.isnan(values).any():
        return [[None if np.isnan(value) else value for value in column] for column in values.T.tolist()]
    columns: list[list[Any]] = values.T.tolist()
    return columns


def _about(recording: Recording) -> dict[str, Any]:
    """What every message of a recording says about device and person."""
    person = recording.person
    return {
        "device": recording.device,
        "subject": person.id,
        "weight": person.weight,
        "height": person.height,
        "age": person.age,
        "gender": person.gender,
    }


def _singles(recording: Recording) -> Iterator[_Outgoing]:
    encode, key, about = msgspec.json.Encoder().encode, recording.device.encode(), _about(recording)
    activities = (*ACTIVITIES, None)  # NO_LABEL is -1
    for start in range(0, len(recording), _CHUNK):
        rows = slice(start, start + _CHUNK)
        times = np.round(recording.ts[rows], _DIGITS).tolist()
        trials, labels = recording.trials[rows].tolist(), recording.labels[rows].tolist()
        columns = _columns(recording, rows)
        for seq, ts, trial, label, *channels in zip(
            range(start, start + len(times)), times, trials, labels, *columns, strict=True
        ):
            reading = Reading(
                ts=ts,
                seq=seq,
                trial=trial,
                act=activities[label],
                **dict(zip(_FIELDS, channels, strict=True)),
                **about,
            )
            yield _Outgoing(ts, key, encode(reading), 1)


def _batches(recording: Recording, bounds: list[tuple[int, int]]) -> Iterator[_Outgoing]:
    encode, key, about = msgspec.json.Encoder().encode, recording.device.encode(), _about(recording)
    for start, end in bounds:
        rows = slice(start, end)
        columns: dict[str, Any] = dict(zip(_FIELDS, _columns(recording, rows), strict=True))
        label = int(recording.labels[start])
        value = ReadingBatch(
            ts=np.round(recording.ts[rows], _DIGITS).tolist(),
            seq=list(range(start, end)),
            trial=int(recording.trials[start]),
            act=None if label == NO_LABEL else ACTIVITIES[label],
            **{name: column for name, column in columns.items() if name in _REQUIRED or None not in column},
            **about,
        )
        yield _Outgoing(float(recording.ts[end - 1]), key, encode(value), end - start)
