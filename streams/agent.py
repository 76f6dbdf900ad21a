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
        self.pending: list[Any] = []
        self.pending_bytes = 0
        self.processors: dict[int, Processor] = {}
        self.lock = asyncio.Lock()
        self.turned = time.monotonic()

    def forget(self) -> None:
        """Drop everything that is not durable; what was not committed is delivered again to its new owner."""
        self.pending.clear()
        self.pending_bytes = 0
        self.processors.clear()

    async def take(self, event: Any) -> None:
        """Take one record in; a checkpoint every `checkpoint_readings` of them or CHECKPOINT_BYTES."""
        self.pending.append(event)
        self.pending_bytes += len(event.message.value or b"")
        if len(self.pending) >= self.settings.checkpoint_readings or self.pending_bytes >= CHECKPOINT_BYTES:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Work off the records taken in, make the effects durable, let their offsets be committed."""
        async with self.lock:
            self.turned = time.monotonic()
            generation = self.app.consumer_generation_id
            if self.app.rebalancing:
                self.forget()
                return
            # What an earlier generation delivered is delivered again; what this one did is not.
            events = [event for event in self.pending if event.message.generation_id == generation]
            self.pending, self.pending_bytes = [], 0
            runs: dict[int, list[Any]] = {}
            for event in events:
                runs.setdefault(event.message.partition, []).append(event.message)
            for partition, messages in runs.items():
                records = [_record(message) for message in messages]
                await self._make_durable(partition, self._processor(partition).process(records))
            if self.app.consumer_generation_id == generation:
                for event in events:
                    event.ack()

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


def create_app(
    settings: Settings, partitions: int, model_version: Callable[[], str | None] = lambda: None
) -> tuple[Any, Watcher]:
    """The Faust app and what it watches with. partitions: how many `activity` has, and so its state's changelog."""
    assert settings.kafka_bootstrap is not None
    app = faust.App(
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
    watcher = Watcher(app, settings, table, model_version)

    async def watch(stream: Any) -> None:
        async for event in stream.noack().events():
            await watcher.take(event)

    async def checkpoint() -> None:
        await watcher.checkpoint()

    async def forget_on_revoke(app: Any, revoked: Any, **_: Any) -> None:
        # A checkpoint under way is finished first: its state would otherwise be written after the next owner's, and
        # the next recovery would begin with the older one.
        async with watcher.lock:
            watcher.forget()

    async def forget_on_recovery() -> None:
        watcher.forget()

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
