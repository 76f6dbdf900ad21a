"""A Faust transport that hands over what one fetch brought of a partition as one event, in the log's order.

Faust spends 100 µs on an event, so one event a reading is ten thousand readings a second. Here an event's value is a
`Chunk` of thousands of records. Faust stays what it is: membership, rebalances, commits, tables and their recovery,
all through aiokafka. Only the readings are fetched by librdkafka (`streams.fetch`), from what is committed once an
assignment is complete, and so again after each.

Nothing is ever acknowledged to Faust, whose own bookkeeping commits past what was not processed (#606, #527): what is
durable is committed as it is.

Leans on private parts of Faust and aiokafka. PRIVATE and ATTRIBUTES list what the agent needs of them; a test holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

import aiokafka.consumer.consumer as aiokafka_consumer
import aiokafka.consumer.fetcher as aiokafka_fetcher
import faust
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams.fetch import ChunkFetcher
from streams.records import Chunk

# How long what is fetched for tables may keep a rebalance waiting.
TABLES_S: Final = 0.2
# A fetch that waits for silent changelogs keeps a question for offsets waiting: not for Faust's 1.5 s.
FETCH_WAIT_MS: Final = 250

# (where, name): what an upgrade of Faust or aiokafka must still have.
PRIVATE: Final = (
    ("faust.App", "_stop_consumer"),
    ("faust.transport.consumer.Consumer", "_drain_messages"),
    ("faust.transport.consumer.Consumer", "_wait_next_records"),
    ("faust.transport.consumer.Consumer", "_commit"),
    ("faust.transport.consumer.Consumer", "_get_active_partitions"),
    ("faust.transport.consumer.Consumer", "on_buffer_full"),
    ("faust.transport.consumer.Consumer", "perform_seek"),
    ("faust.transport.consumer.Consumer", "verify_event_path"),
    ("faust.transport.drivers.aiokafka.Consumer", "_new_consumer_thread"),
    ("faust.transport.drivers.aiokafka.Consumer", "_to_message"),
    ("faust.transport.drivers.aiokafka.AIOKafkaConsumerThread", "_create_worker_consumer"),
    ("aiokafka.consumer.consumer", "Fetcher"),
    ("aiokafka.consumer.fetcher.Fetcher", "_get_actions_per_node"),
    ("faust.tables.base.Collection", "apply_changelog_batch"),
    ("faust.tables.base.Collection", "data"),
)
# The same of what they set on themselves.
ATTRIBUTES: Final = (
    ("faust.transport.consumer.Consumer", "_committed_offset"),
    ("faust.transport.consumer.Consumer", "_read_offset"),
    ("faust.transport.consumer.Consumer", "_buffered_partitions"),
    ("faust.stores.memory.Store", "data"),
    ("aiokafka.consumer.consumer.AIOKafkaConsumer", "_fetch_max_wait_ms"),
)


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # no types published
    """aiokafka's consumer with a setting that Faust does not hand on."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class ChunkConsumer(driver.Consumer):  # type: ignore[misc]  # no types published
    """Faust's consumer, of which one topic (`ChunkTransport.topic`) is handed over in chunks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seeks = 0  # so often was it decided where the partitions go on

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _in_chunks(self, place: Any) -> bool:
        return bool(place.topic == self.transport.topic)

    def on_buffer_full(self, tp: Any) -> None:
        """Nothing, for chunks: Faust would stop fetching for a second. Handing over waits instead (`_hand_over`)."""
        if not self._in_chunks(tp):
            super().on_buffer_full(tp)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust's search for partitions that aiokafka does not fetch; ours it never does."""
        if not self._in_chunks(tp):
            super().verify_event_path(now, tp)

    async def perform_seek(self) -> None:
        """Go back to what is committed; every assignment ends here."""
        await super().perform_seek()
        self._seeks += 1

    async def committed_through(self, offsets: dict[Any, int]) -> bool:
        """Commit that everything before these offsets is durable. False if the partitions have gone meanwhile."""
        done = bool(await self._commit(offsets))
        if done:
            self._committed_offset.update(offsets)  # Faust's own checks of progress look at it
        return done

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._drain_tables(fetcher))
                tasks.create_task(self._drain_chunks(fetcher))
        except (asyncio.CancelledError, *self.consumer_stopped_errors) as error:
            if not self.transport.app.should_stop:
                self.transport.failed(error)
        except ExceptionGroup as group:  # Faust would stay alive, hold its partitions and read nothing
            if not (self.transport.app.should_stop and group.subgroup(self.consumer_stopped_errors)):
                self.transport.failed(group.exceptions[0])

    def _has_ended(self, fetcher: Any) -> bool:
        return bool(self._stopped.is_set() or fetcher._stopped.is_set())

    async def _drain_tables(self, fetcher: Any) -> None:
        """Changelogs, record by record, as Faust does it."""
        while not self._has_ended(fetcher):
            if all(map(self._in_chunks, self._get_active_partitions())):
                await asyncio.sleep(0.02)
                continue
            records, active = await self._wait_next_records(TABLES_S)
            generation = self.app.consumer_generation_id
            await asyncio.sleep(0)
            if self.should_stop or not self.flow_active:
                continue
            for place, found in records.items():
                if not self._in_chunks(place):
                    await self._hand_over_singly(ensure_TP(place), found, active, generation)

    async def _drain_chunks(self, fetcher: Any) -> None:
        topic, config = self.transport.topic, self.transport.config | {"group.id": self.app.conf.id}
        reading: Any = None
        chunks: ChunkFetcher | None = None
        try:
            while not self._has_ended(fetcher):
                places = {place for place in self._get_active_partitions() if self._in_chunks(place)}
                wanted = (self.app.consumer_generation_id, self._seeks, places)
                if not places or not self._seeks or self._is_stale(wanted[0]):
                    await asyncio.sleep(0.02)
                    continue
                if chunks is None or reading != wanted:
                    starts = await self._first_offsets(places)
                    if self._is_stale(wanted[0]) or self._seeks != wanted[1]:
                        continue
                    if chunks is not None:
                        chunks.close()
                    reading, chunks = wanted, ChunkFetcher(topic, config, starts)
                for partition, chunk in await chunks.fetch():
                    if not await self._hand_over(TP(topic, partition), chunk, wanted):
                        reading = None
                        break
                await asyncio.sleep(0)
        finally:
            if chunks is not None:
                chunks.close()

    def _is_stale(self, generation: int) -> bool:
        app = self.app
        return bool(app.rebalancing or not self.flow_active or app.consumer_generation_id != generation)

    async def _hand_over(self, place: Any, chunk: Chunk, wanted: Any) -> bool:
        """Let the chunk be processed; returns when there is room for another. False if it may not have been."""
        generation, seeks, _ = wanted
        if self._is_stale(generation) or self._seeks != seeks:
            return False
        message = ConsumerMessage(
            place.topic, place.partition, chunk.end - 1, 0.0, 0, (), None, chunk, None, 0, 0, place,
            generation_id=generation,
        )  # fmt: skip
        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        return not (self.suspend_flow.is_set() or self._is_stale(generation) or self._seeks != seeks)

    async def _first_offsets(self, places: set[Any]) -> dict[int, int]:
        """Where each partition goes on: behind what is committed, or at its earliest record."""
        starts = {place.partition: self._committed_offset[place] for place in places}
        if fresh := [place for place in places if starts[place.partition] is None]:
            starts |= {place.partition: offset for place, offset in (await self.earliest_offsets(*fresh)).items()}
        return {partition: int(offset or 0) for partition, offset in starts.items()}

    async def _hand_over_singly(self, place: Any, records: Any, active: Any, generation: int) -> None:
        if not self.flow_active or self.app.consumer_generation_id != generation:
            return
        if active is not None and place not in active and place not in self._buffered_partitions:
            return
        for number, record in enumerate(records):
            if number % 100 == 99:
                await asyncio.sleep(0)
            read = self._read_offset[place]
            if read is None or record.offset >= read:
                message = self._to_message(place, record)
                await self.wait_first(self.callback(message), self.suspend_flow.wait())
                self._read_offset[place] = record.offset


class ChunkTransport(driver.Transport):  # type: ignore[misc]  # no types published
    """Faust's aiokafka transport, one topic of which comes in chunks.

    config: librdkafka's for a client of the same brokers. failed: what to do when it can read no longer.
    """

    Consumer = ChunkConsumer

    def __init__(
        self, app: Any, topic: str, config: Mapping[str, Any], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.topic = topic
        self.config = dict(config)
        self.failed = failed
        _leave_out(topic)


class ChunkSchema(faust.Schema):  # type: ignore[misc]  # no types published
    """Keys and values as they are: a chunk is decoded by the core."""

    def compile(self, app: Any, **_: Any) -> Any:
        """A decoder that decodes nothing."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(message.key, message.value, message.headers, message)

        return decode


def _leave_out(topic: str) -> None:
    """Have aiokafka not fetch a topic, although its partitions are assigned to it and committed through it."""
    stock = aiokafka_fetcher.Fetcher

    class Fetcher(stock):  # type: ignore[misc,valid-type]  # no types published
        def _get_actions_per_node(self, assignment: Any) -> Any:
            left = SimpleNamespace(
                tps=[place for place in assignment.tps if place.topic != topic], state_value=assignment.state_value
            )
            return super()._get_actions_per_node(left)

    aiokafka_consumer.Fetcher = Fetcher
