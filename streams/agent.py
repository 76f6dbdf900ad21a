"""The Faust app: readings in from `activity`, drift events and dead letters out, device state in a changelog.

Thin on purpose. What a run of records means is decided in `streams.processor`; here it is only made durable, in the
order that lets nothing be lost: drift events and dead letters acknowledged, then state acknowledged, then the offsets
may be committed. A crash in between repeats a run, and repeating it gives the same ids and the same state.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

import faust
import structlog
from faust.types import TP
from mode.supervisors import CrashingSupervisor

from schemas.envelope import encode, envelope
from schemas.settings import Settings
from schemas.topology import (
    ACTIVITY,
    AGENT_GROUP,
    DEAD_LETTER_BYTES,
    DEVICES_TABLE,
    DRIFT,
    dead_letters,
)
from streams import state as device_state
from streams.deadletters import dead_letter_headers, fitting
from streams.detectors import DETECTORS
from streams.gate import Record, Rejection
from streams.position import KafkaLog, Position
from streams.processor import Drift, Outcome, Processor
from streams.state import DeviceState

log = structlog.get_logger()

SOURCE = "driftloop/agent"
# Records may be large: a checkpoint also comes with so many bytes of them in memory.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# How long Kafka may take to acknowledge: longer than a broker's restart. After that the process ends (Stop) and its
# supervisor's next one waits for the broker and its topics, and says what is missing.
ACKNOWLEDGE_S = 30.0


class Watcher:
    """What the agent holds between checkpoints: records taken in, and one processor for each owned partition."""

    def __init__(self, app: Any, settings: Settings, table: Any, model_version: Callable[[], str | None]) -> None:
        self.app = app
        self.settings = settings
        self.table = table
        self.model_version = model_version
        self.fresh = DETECTORS[settings.detector]
        raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
        self.activity = app.topic(settings.topic(ACTIVITY), **raw)
        self.drift = app.topic(settings.topic(DRIFT), **raw)
        self.dead_letters = app.topic(settings.topic(dead_letters(ACTIVITY)), **raw)
        self.position = Position(KafkaLog(settings), self._rewind)
        self.pending: list[Any] = []
        self.pending_bytes = 0
        self.processors: dict[int, Processor] = {}
        self.lock = asyncio.Lock()
        self.closed = False
        self.turned = time.monotonic()

    def forget(self) -> None:
        """Drop everything that is not durable; what was not committed is delivered again to its new owner."""
        self.pending.clear()
        self.pending_bytes = 0
        self.processors.clear()
        self.position.forget()

    async def close(self) -> None:
        """Finish the checkpoint that is under way and begin no other one.

        Before partitions go to another owner: a state written after that owner's would be what the next recovery begins
        with, although it is the older one.
        """
        async with self.lock:
            self.closed = True
            self.forget()

    async def take(self, event: Any) -> None:
        """Take one record in; a checkpoint every `checkpoint_readings` of them or CHECKPOINT_BYTES."""
        message = event.message
        if message.generation_id != self.app.consumer_generation_id:
            return  # delivered again to whoever owns the partition now
        if not await self.position.expects(message.partition, message.offset):
            return
        self.pending.append(event)
        self.pending_bytes += len(event.message.value or b"")
        if len(self.pending) >= self.settings.checkpoint_readings or self.pending_bytes >= CHECKPOINT_BYTES:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Work off the records taken in, make the effects durable, let their offsets be committed."""
        # Once begun it is finished, even if the task is cancelled: see `close`.
        await asyncio.shield(self._checkpoint())

    async def _checkpoint(self) -> None:
        async with self.lock:
            self.turned = time.monotonic()
            generation = self.app.consumer_generation_id
            # Faust delivers before it says that a rebalance has ended, and that is not delivered again: it is kept.
            if self.closed or self.app.rebalancing:
                return
            if any(event.message.generation_id != generation for event in self.pending):
                self.forget()
                return
            events, self.pending, self.pending_bytes = self.pending, [], 0
            runs: dict[int, list[Any]] = {}
            for event in events:
                runs.setdefault(event.message.partition, []).append(event.message)
            for partition, messages in runs.items():
                records = [_record(message) for message in messages]
                await self._make_durable(partition, self._processor(partition).process(records))
            if runs and self.app.consumer_generation_id == generation:
                await self._commit({messages[-1].tp: messages[-1].offset + 1 for messages in runs.values()})

    async def _rewind(self, partition: int, offset: int) -> None:
        place = TP(self.activity.get_topic_name(), partition)
        if place in self.app.consumer.assignment():
            await self.app.consumer.seek(place, offset)

    async def _commit(self, offsets: dict[Any, int]) -> None:
        """Commit what is durable, and nothing else.

        Faust's own bookkeeping of acknowledgements takes the holes that its reordering leaves for processed records
        and commits past them, so no event is ever acknowledged to it.
        """
        consumer = self.app.consumer
        if await consumer._commit(offsets):  # the one way to commit an offset of one's choice
            consumer._committed_offset.update(offsets)  # its own checks of progress look at it

    def _processor(self, partition: int) -> Processor:
        processor = self.processors.get(partition)
        if processor is None:
            processor = self.processors[partition] = Processor(
                self.settings.topic(ACTIVITY),
                partition,
                model=self.settings.model,
                load=self._load,
                fresh=self.fresh,
                model_version=self.model_version,
            )
        return processor

    def _load(self, device: str) -> DeviceState | None:
        blob = self.table.data.get(device.encode())
        return None if blob is None else device_state.decode(blob, self.fresh)

    async def _make_durable(self, partition: int, outcome: Outcome) -> None:
        sends = [await self._send_drift(drift) for drift in outcome.drifts]
        sends += [await self._send_dead_letter(partition, rejection) for rejection in outcome.rejections]
        _tell(partition, outcome.rejections)
        await asyncio.gather(*sends)
        saves = []
        for device, state in outcome.changed.items():
            key, blob = device.encode(), device_state.encode(state)
            saves.append(await self.table.changelog_topic.send(key=key, value=blob, partition=partition))
            self.table.data.data[key] = blob
        await asyncio.gather(*saves)

    async def _send_dead_letter(self, partition: int, rejection: Rejection) -> Any:
        record, cut = fitting(rejection.record)
        headers = dead_letter_headers(
            self.activity.get_topic_name(), partition, record, rejection.reject_class, rejection.reason + cut
        )
        return await self.dead_letters.send(key=record.key, value=record.value, partition=partition, headers=headers)

    async def _send_drift(self, drift: Drift) -> Any:
        event = drift.event
        log.info(
            "drift.detected",
            id=drift.id,
            device=event.device,
            feature=event.feature,
            statistic=event.statistic,
            effect=event.effect,
        )
        key, value, headers = encode(
            envelope(event, id=drift.id, source=SOURCE, subject=event.device, time=event.ts, root=event.episode)
        )
        return await self.drift.send(key=key, value=value, headers=headers)

    @property
    def ready(self) -> bool:
        """Whether partitions are owned and their state has been read back. May be asked by another thread, any time."""
        # Before the app has started, asking for its consumer would make one, outside its event loop.
        return bool(self.app.started and not self.app.rebalancing and self.app.consumer.assignment())


def _tell(partition: int, rejections: list[Rejection]) -> None:
    """One line for each class: a sensor that sends nothing but nonsense must not fill the disk with our logs."""
    by_class: dict[str, list[Rejection]] = {}
    for rejection in rejections:
        by_class.setdefault(rejection.reject_class, []).append(rejection)
    for reject_class, alike in by_class.items():
        log.warning(
            "reading.rejected",
            partition=partition,
            offset=alike[0].record.offset,
            reject_class=reject_class,
            reason=alike[0].reason,
            count=len(alike),
        )


def _record(message: Any) -> Record:
    headers = message.headers
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    # Kafka writes -1 for "none"; streams.replay must see the same.
    timestamp = message.timestamp if message.timestamp and message.timestamp > 0 else None
    return Record(message.offset, timestamp, message.key, message.value, tuple(pairs))


class _Forgetful(dict[Any, Any]):
    """Faust's last read offset of each partition, always None for one topic."""

    def __init__(self, topic: str, known: dict[Any, Any]) -> None:
        super().__init__(known)
        self.topic = topic

    def __getitem__(self, place: Any) -> Any:
        return None if place.topic == self.topic else self.get(place)


class _App(faust.App):  # type: ignore[misc]  # no types published
    watcher: Watcher | None = None

    def _new_consumer(self) -> Any:
        """A consumer that hands over all that it is given: `Position` decides what is new.

        Faust's own memory of what it has read drops, as old, records that it has gone back for.
        """
        consumer = super()._new_consumer()
        assert self.watcher is not None
        consumer._read_offset = _Forgetful(self.watcher.activity.get_topic_name(), consumer._read_offset)
        return consumer

    async def _stop_consumer(self) -> None:
        """Leave the group only once nothing more is written for it."""
        if self.watcher is not None:
            await self.watcher.close()
        await super()._stop_consumer()


def create_app(
    settings: Settings, partitions: int, model_version: Callable[[], str | None] = lambda: None
) -> tuple[Any, Watcher]:
    """The Faust app and what it watches with. partitions: how many `activity` has, and so its state's changelog."""
    assert settings.kafka_bootstrap is not None
    app = _App(
        f"{settings.namespace}{AGENT_GROUP}",
        broker=";".join(f"kafka://{server.strip()}" for server in settings.kafka_bootstrap.split(",")),
        broker_credentials=_credentials(settings),
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_commit_interval=0.3,
        consumer_auto_offset_reset="earliest",
        producer_max_request_size=DEAD_LETTER_BYTES,
        producer_request_timeout=ACKNOWLEDGE_S,
        store="memory://",
        table_standby_replicas=0,
        # Topics are made by `driftloop topics create`, not by whoever comes first.
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=partitions,
        # An exception inside an agent acknowledges the event (faust #527): the process must end instead.
        agent_supervisor=CrashingSupervisor,
        # Unacknowledged events would keep a rebalance or a shutdown waiting for ever.
        stream_wait_empty=False,
        web_enabled=False,
        datadir=settings.home / "faust",
    )
    table = app.Table(DEVICES_TABLE, partitions=partitions, key_type=bytes, value_type=bytes)
    watcher = app.watcher = Watcher(app, settings, table, model_version)

    activity = settings.topic(ACTIVITY)

    async def watch(stream: Any) -> None:
        async for event in stream.noack().events():
            await watcher.take(event)

    async def checkpoint() -> None:
        await watcher.checkpoint()
        if not app.rebalancing:
            await watcher.position.tend()

    async def forget_on_revoke(app: Any, revoked: Any, **_: Any) -> None:
        async with watcher.lock:  # as in `close`
            watcher.forget()

    async def forget_on_recovery() -> None:
        watcher.forget()
        owned = sorted(place.partition for place in app.consumer.assignment() if place.topic == activity)
        log.info("agent.assigned", partitions=owned)

    app.agent(watcher.activity, name="activity", concurrency=1)(watch)
    app.timer(interval=settings.checkpoint_seconds)(checkpoint)
    app.on_partitions_revoked.connect(forget_on_revoke)
    table.on_recover(forget_on_recovery)
    return app, watcher


def _credentials(settings: Settings) -> Any:
    protocol = settings.kafka_security_protocol
    context = None
    if protocol.endswith("SSL"):
        ca = settings.kafka_ssl_ca
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism,
        )
    return faust.SSLCredentials(context=context) if context else None
