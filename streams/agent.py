"""The Faust app: chunks of readings in from `activity`, drift events and dead letters out, device state in a changelog.

Thin on purpose. What a chunk means is decided in `streams.processor`; here it is only made durable, in the order that
lets nothing be lost: drift events and dead letters acknowledged, then state acknowledged, then offsets committed. A
crash in between repeats some chunks, and repeating them gives the same ids and the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import faust
import structlog
from faust.types import TP
from mode.supervisors import CrashingSupervisor

from schemas.envelope import encode, envelope
from schemas.errors import Stop
from schemas.events import QualityDegraded
from schemas.failpoints import reach
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_GROUP, DEVICE_STATISTICS, DEVICES_TABLE, DRIFT, dead_letters
from streams import counters, devicestats, state
from streams.deadletters import dead_letter_headers, fitting
from streams.detectors import kind_of
from streams.devicestats import DeviceStatistics
from streams.drift import Kind
from streams.gate import Rejection
from streams.kafka import client_config
from streams.outbox import Outbox
from streams.processor import Drift, Processor
from streams.records import Chunk
from streams.transport import ChunkSchema, ChunkTransport

log = structlog.get_logger()

SOURCE: Final = "driftloop/agent"
# Chunks that wait for the agent (`streams.fetch`: 4 MiB, or a single record that is larger). With what librdkafka holds
# this bounds the backlog in the process, however slow the agent is.
WAITING_CHUNKS: Final = 2
# At most this share of the time is spent on state: many devices are made durable less often.
STATE_SHARE: Final = 0.1
# A drift is followed by a checkpoint, so that a crash seldom repeats it; but not by one each.
SOONEST_CHECKPOINT_S: Final = 0.1
# For so long after a commit, half a session, the group has given the partitions to nobody else.
UNSURE_S: Final = 5.0
# So many checkpoints may be due before the agent waits for one.
MOST_CHECKPOINTS_BEHIND: Final = 4
# A process that is told to end does not wait for a broker that is away.
LAST_CHECKPOINT_S: Final = 5.0


class Watcher:
    """What the agent holds between checkpoints: a processor for each owned partition, and how far each has come."""

    def __init__(
        self, app: Any, settings: Settings, table: Any, model_version: Callable[[], str | None], kind: Kind
    ) -> None:
        self.app = app
        self.settings = settings
        self.table = table
        self.model_version = model_version
        self.fresh = kind
        self.activity = settings.topic(ACTIVITY)
        self.drift = settings.topic(DRIFT)
        self.dead_letters = settings.topic(dead_letters(ACTIVITY))
        self.changelog = table.changelog_topic.get_topic_name()
        self.statistics = settings.topic(DEVICE_STATISTICS)
        self.outbox = Outbox(settings)
        self.show = DeviceStatistics(settings.device_statistics)
        self.counters = counters.of_agent()
        self.processors: dict[int, Processor] = {}
        self.taken: dict[int, int] = {}  # the offset behind the last chunk taken of each partition
        self.begun: dict[int, int] = {}  # where the first of them began
        self.committed: dict[int, int] = {}
        self.readings = 0  # since the last checkpoint
        self.due = 0.0  # when the next checkpoint may begin
        self.sweep = 0.0  # when silent devices are next looked for
        self.full = asyncio.Event()
        self.lock = asyncio.Lock()
        # Held while what a chunk led to is handed over, which waits when too much is on its way: no state may be taken
        # that is ahead of it.
        self.steady = asyncio.Lock()
        self.closed = False
        self.turned = time.monotonic()
        self.sure = float("-inf")  # when the group was last asked for a commit that it then took

    def forget(self) -> None:
        """Drop everything that is not durable; what was not committed is delivered again to its new owner."""
        self.processors.clear()
        self.taken.clear()
        self.begun.clear()
        self.committed.clear()
        self.readings = 0
        self.sure = float("-inf")
        self.outbox.forget()

    async def close(self) -> None:
        """Make durable what was taken, if Kafka lets us, then begin nothing more: the next owner goes on from there."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(LAST_CHECKPOINT_S):
                await self.checkpoint()
        self.closed = True

    async def take(self, chunk: Chunk, partition: int, generation: int) -> None:
        """Take a chunk in; after every so many readings a checkpoint begins, and goes on beside the next chunks."""
        if self.closed or generation != self.app.consumer_generation_id:
            return  # delivered again to whoever owns the partition now
        known = self.taken.get(partition, chunk.start)
        if chunk.start > known:
            raise Stop(f"partition {partition}: {chunk.start} came where {known} comes next; starting again from there")
        if chunk.end <= known:
            return
        if chunk.start < known:
            chunk = chunk.since(known)
        async with self.steady:
            self.begun.setdefault(partition, chunk.start)
            outcome = self._processor(partition).process(chunk)
            self.taken[partition] = chunk.end
            self.turned = time.monotonic()
            self.readings += max(len(chunk), outcome.readings)
            counters.count(self.counters, chunk.offsets, outcome)
            for drift in outcome.drifts:
                self.show.drifted(drift.event.device)
                await self._send(*self._drift(drift))
            for shown in outcome.shown:
                self.outbox.tell(self.statistics, *devicestats.encode(shown))
            for rejection in outcome.rejections:
                await self._send(*self._dead_letter(partition, rejection))
                reach("while-dead-lettering")
        _tell_rejected(partition, outcome.rejections)
        _tell_found(outcome.drifts)
        if outcome.drifts or self.readings >= self.settings.checkpoint_readings:
            self.full.set()
            if self.readings >= MOST_CHECKPOINTS_BEHIND * self.settings.checkpoint_readings:
                await self.checkpoint()

    async def checkpoint(self) -> None:
        """Make what was taken durable, and commit its offsets."""
        # Once begun it is finished, even if the task is cancelled: see `close`.
        await asyncio.shield(self._checkpoint())

    async def _checkpoint(self) -> None:
        async with self.lock:
            self.turned = time.monotonic()
            generation = self.app.consumer_generation_id
            if self.closed or self.app.rebalancing or self.taken == self.committed:
                return
            # State as of now; chunks may go on changing it while this one is on its way.
            async with self.steady:
                taken, self.readings = dict(self.taken), 0
                begun = time.thread_time()
                states = {partition: processor.snapshot() for partition, processor in self.processors.items()}
                spent = time.thread_time() - begun
            self.due = time.monotonic() + max(SOONEST_CHECKPOINT_S, spent / STATE_SHARE)
            await self.outbox.acknowledged()
            reach("after-drift-send")
            if self.closed or generation != self.app.consumer_generation_id:
                return
            reach("before-state-write")
            while time.monotonic() - self.sure > UNSURE_S:  # it may freeze while it asks; then it writes at once
                if not await self._is_ours():
                    # A rebalance is under way, or it froze until the partitions had moved, and its state is older than
                    # their new owner's.
                    log.info("checkpoint.refused")
                    return
            for partition, devices in states.items():
                for device, blob in devices.items():
                    await self._send(self.changelog, device.encode(), blob, None, partition)
            await self.outbox.acknowledged()
            for devices in states.values():
                for device in devices:  # recovery finds the new state behind the one that it has read
                    self.table.data.data.pop(device.encode(), None)
            reach("after-state-write")
            reach("before-commit")
            offsets = {TP(self.activity, partition): end for partition, end in taken.items()}
            if generation == self.app.consumer_generation_id and await self._commit(offsets):
                self.committed = taken

    async def _is_ours(self) -> bool:
        """Whether the group still takes our commits: the broker knows better than we do."""
        same = {TP(self.activity, partition): start for partition, start in (self.begun | self.committed).items()}
        return await self._commit(same)

    async def _commit(self, offsets: dict[Any, int]) -> bool:
        asked = time.monotonic()
        taken = bool(await self.app.consumer.committed_through(offsets))
        if taken:
            self.sure = asked
        return taken

    async def tend(self) -> None:
        """Wait until it is time for a checkpoint, and make it; let devices go that have been silent for long."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.full.wait(), self.settings.checkpoint_seconds)
        self.full.clear()
        await asyncio.sleep(max(0.0, self.due - time.monotonic()))
        await self.checkpoint()
        if time.monotonic() >= self.sweep:
            self.sweep = time.monotonic() + self.settings.idle_seconds / 10
            async with self.lock:  # a state on its way is not durable yet
                for processor in self.processors.values():
                    for device, blob in processor.silent(self.settings.idle_seconds).items():
                        self.table.data.data[device.encode()] = blob

    async def _send(self, *record: Any) -> None:
        while True:
            try:
                self.outbox.send(*record)
            except BufferError:
                await self.outbox.acknowledged()
            else:
                return

    def _processor(self, partition: int) -> Processor:
        processor = self.processors.get(partition)
        if processor is None:
            processor = self.processors[partition] = Processor(
                self.activity,
                partition,
                model=self.settings.model,
                load=lambda device: self.table.data.data.get(device.encode()),
                fresh=self.fresh,
                model_version=self.model_version,
                show=self.show,
            )
        return processor

    def _dead_letter(self, partition: int, rejection: Rejection) -> tuple[Any, ...]:
        record, cut = fitting(rejection.record)
        headers = dead_letter_headers(self.activity, partition, record, rejection.reject_class, rejection.reason + cut)
        return self.dead_letters, record.key, record.value, headers, partition

    def _drift(self, drift: Drift) -> tuple[Any, ...]:
        event = drift.event
        root = None if isinstance(event, QualityDegraded) else event.episode
        return self.drift, *encode(
            envelope(event, id=drift.id, source=SOURCE, subject=event.device, time=event.ts, root=root)
        )

    @property
    def ready(self) -> bool:
        """Whether partitions are owned and their state has been read back. May be asked by another thread, any time."""
        # Before the app has started, asking for its consumer would make one, outside its event loop.
        return bool(self.app.started and not self.app.rebalancing and self.app.consumer.assignment())

    @property
    def owned(self) -> list[int]:
        """The partitions of `activity` that this agent has. May be asked by another thread, any time."""
        return self.assigned() if self.app.started and not self.app.rebalancing else []

    def assigned(self) -> list[int]:
        """The same once the app has started, even while a rebalance is not over."""
        return sorted(place.partition for place in self.app.consumer.assignment() if place.topic == self.activity)


def _tell_found(drifts: list[Drift]) -> None:
    """One line for each device: `raw` mode finds several a second, and they are on the topic."""
    by_device: dict[str, list[Drift]] = {}
    for drift in drifts:
        by_device.setdefault(drift.event.device, []).append(drift)
    for device, alike in by_device.items():
        first = alike[0].event
        if isinstance(first, QualityDegraded):
            about = {"channel": first.channel, "fault": first.fault, "ended": first.ended}
            log.warning("quality.degraded", device=device, id=alike[0].id, count=len(alike), **about)
        else:
            about = {"feature": first.feature, "statistic": first.statistic, "effect": first.effect}
            log.info("drift.detected", device=device, id=alike[0].id, count=len(alike), **about)


def _tell_rejected(partition: int, rejections: list[Rejection]) -> None:
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


class _DevicesTable(faust.Table):  # type: ignore[misc]  # no types published
    """Device states by key. Of a device's states in the changelog the one that has come furthest counts, not the last:
    an agent that was stopped and goes on after its partitions have moved may write one that is older.
    """

    failed: Callable[[BaseException], None]

    def apply_changelog_batch(self, batch: Any) -> None:
        """Take records of the changelog in, while recovering."""
        reach("in-recovery")
        newest: dict[bytes, Any] = {}
        try:
            for event in batch:
                key, value = event.message.key, event.message.value
                old = newest[key].message.value if key in newest else self.data.data.get(key)
                if not old or not value or state.last_offset(value) >= state.last_offset(old):
                    newest[key] = event
        except Stop as error:  # Faust would try again for ever
            self.failed(error)
        super().apply_changelog_batch(newest.values())


class _App(faust.App):  # type: ignore[misc]  # no types published
    watcher: Watcher | None = None

    async def _stop_consumer(self) -> None:
        """Leave the group only once nothing more is written for it."""
        if self.watcher is not None:
            await self.watcher.close()
        await super()._stop_consumer()


def create_app(
    settings: Settings,
    partitions: int,
    model_version: Callable[[], str | None] = lambda: None,
    *,
    failed: Callable[[BaseException], None],
    kind: Kind | None = None,
) -> tuple[Any, Watcher]:
    """The Faust app and what it watches with. partitions: how many `activity` has, and so its state's changelog.

    failed: ends the process, whose state can be trusted no longer. kind: how drift is detected; by default what the
    settings say.
    """
    assert settings.kafka_bootstrap is not None
    activity = settings.topic(ACTIVITY)
    app = _App(
        f"{settings.namespace}{AGENT_GROUP}",
        broker=";".join(f"kafka://{server.strip()}" for server in settings.kafka_bootstrap.split(",")),
        broker_credentials=_credentials(settings),
        broker_session_timeout=10.0,
        broker_heartbeat_interval=0.5,  # by which the others hear of who comes and goes
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=WAITING_CHUNKS,
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
        Table=_DevicesTable,
    )
    app.transport = ChunkTransport(app, activity, client_config(settings), failed)
    table = app.Table(DEVICES_TABLE, partitions=partitions, key_type=bytes, value_type=bytes)
    table.failed = failed
    watcher = app.watcher = Watcher(app, settings, table, model_version, kind or kind_of(settings))

    def ending(work: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
        """Faust lives on without a task that has failed, or acknowledges what it failed at."""

        async def watched(*given: Any) -> None:
            try:
                await work(*given)
            except Exception as error:  # noqa: BLE001 - whatever it is, the process ends, and repeats what is not durable
                failed(error)

        return watched

    @ending
    async def watch(stream: Any) -> None:
        async for event in stream.noack().events():
            await watcher.take(event.value, event.message.partition, event.message.generation_id)

    @ending
    async def tend(_: Any) -> None:
        while not watcher.closed:
            await watcher.tend()

    async def forget_on_revoke(app: Any, revoked: Any, **_: Any) -> None:
        reach("in-rebalance")
        async with watcher.lock:  # what is being made durable is finished first
            watcher.forget()

    async def forget_on_recovery() -> None:
        watcher.forget()
        log.info("agent.assigned", partitions=watcher.assigned())

    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    topic = app.topic(activity, schema=ChunkSchema(**raw))
    app.agent(topic, name="activity", concurrency=1)(watch)
    app.task(tend)
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
