"""A Faust transport that hands over what one fetch brought of a partition as one event, in the log's order.

Faust spends 100 µs on an event, so one event a reading is ten thousand readings a second. Here an event's value is a
`Chunk` of thousands of records. Faust stays what it is: membership, rebalances, tables and their recovery.

Around a rebalance aiokafka's fetcher and Faust between them repeat records, and skip some: what had been fetched before
is still handed over after Faust has gone back to the committed offset. So each chunk names the offset that its fetch
was asked for, and is handed over only if it goes on where the one before it ended; if it does not, the partition is
sought back. Nothing is ever acknowledged to Faust, whose own bookkeeping commits past what was not processed (#606,
#527): what is durable is committed as it is.

Leans on private parts of Faust and aiokafka, all of them here: PRIVATE lists them, a test holds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiokafka.consumer.fetcher as aiokafka_fetcher
import faust
import structlog
from aiokafka.errors import CorruptRecordException
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage

from schemas.errors import Stop
from streams.records import Chunk

log = structlog.get_logger()

# A fetch that waits for silent partitions keeps the next one of a busy partition waiting: not for Faust's 1.5 s.
FETCH_WAIT_MS: Final = 250

# (where, name): what an upgrade of Faust or aiokafka must still have.
PRIVATE: Final = (
    ("faust.transport.consumer.Consumer", "_drain_messages"),
    ("faust.transport.consumer.Consumer", "_wait_next_records"),
    ("faust.transport.consumer.Consumer", "_commit"),
    ("faust.transport.consumer.Consumer", "_get_active_partitions"),
    ("faust.transport.consumer.Consumer", "on_buffer_full"),
    ("faust.transport.consumer.Consumer", "perform_seek"),
    ("faust.transport.drivers.aiokafka.Consumer", "_new_consumer_thread"),
    ("faust.transport.drivers.aiokafka.Consumer", "_to_message"),
    ("faust.transport.drivers.aiokafka.AIOKafkaConsumerThread", "_create_worker_consumer"),
    ("aiokafka.consumer.fetcher", "PartitionRecords"),
    ("aiokafka.consumer.fetcher.PartitionRecords", "_unpack_records"),
    ("aiokafka.consumer.fetcher.PartitionRecords", "_consume_aborted_up_to"),
    ("aiokafka.consumer.fetcher.PartitionRecords", "_contains_abort_marker"),
)


class ChunkRecords(aiokafka_fetcher.PartitionRecords):  # type: ignore[misc]  # no types published
    """What one fetch brought of a partition, as one record: a Chunk. Aborted records and markers are left out."""

    next_fetch_offset: int

    def _unpack_records(self) -> Any:
        start = self.next_fetch_offset
        records: list[Any] = []
        while self._records.has_next():
            batch = self._records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"{self._tp.topic}/{self._tp.partition}: a batch's checksum is wrong")
            if not self._is_left_out(batch):
                records += batch
            self.next_fetch_offset = batch.next_offset
        if records and records[0].offset < start:  # a fetch begins with the whole batch that holds its offset
            records = [record for record in records if record.offset >= start]
        yield Chunk(
            start,
            self.next_fetch_offset,
            [record.offset for record in records],
            [-1 if record.timestamp is None else record.timestamp for record in records],
            [record.key for record in records],
            [record.value for record in records],
            [record.headers for record in records],
        )

    def _is_left_out(self, batch: Any) -> bool:
        if batch.producer_id is None:  # a format from before transactions
            return False
        self._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch:
            if self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            return True
        return bool(batch.is_transactional and batch.producer_id in self._aborted_producers)


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # no types published
    """aiokafka's consumer with two settings that Faust does not hand on."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # what was aborted was never sent
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class ChunkConsumer(driver.Consumer):  # type: ignore[misc]  # no types published
    """Faust's consumer for topics of which some (`ChunkTransport.topics`) are handed over in chunks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._next: dict[Any, int] = {}  # the offset with which the next chunk of a partition has to begin
        self._skipped: set[Any] = set()  # partitions of which a chunk was fetched and not handed over

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _in_chunks(self, place: Any) -> bool:
        return place.topic in self.transport.topics

    def on_buffer_full(self, tp: Any) -> None:
        """Nothing, for chunks: Faust would stop fetching for a second. Handing over waits instead (`_hand_over`)."""
        if not self._in_chunks(tp):
            super().on_buffer_full(tp)

    async def perform_seek(self) -> None:
        """Go back to what is committed; every assignment ends here.

        Not of a partition of which nothing is committed: what was skipped of it stays so, until it is gone back for.
        """
        self._next.clear()
        await super().perform_seek()
        self._next.clear()

    async def committed_through(self, offsets: dict[Any, int]) -> bool:
        """Commit that everything before these offsets is durable. False if the partitions have gone meanwhile."""
        done = bool(await self._commit(offsets))
        if done:
            self._committed_offset.update(offsets)  # Faust's own checks of progress look at it
        return done

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                records, active = await self._wait_next_records(1.0)
                generation = self.app.consumer_generation_id
                await asyncio.sleep(0)
                if self.should_stop:
                    continue
                if not self.flow_active:
                    if records:
                        await self.perform_seek()
                    continue
                await self._go_back(generation)
                for place, found in records.items():
                    if self._in_chunks(place):
                        for chunk in found:
                            await self._hand_over(ensure_TP(place), chunk, generation)
                    else:
                        await self._hand_over_singly(ensure_TP(place), found, active, generation)
        except (asyncio.CancelledError, *self.consumer_stopped_errors) as error:
            if not self.transport.app.should_stop:
                self.transport.failed(error)
        except Exception as error:  # noqa: BLE001 - Faust would stay alive, hold its partitions and read nothing
            self.transport.failed(error)

    def _is_stale(self, generation: int) -> bool:
        app = self.app
        return bool(app.rebalancing or not self.flow_active or app.consumer_generation_id != generation)

    async def _go_back(self, generation: int) -> None:
        """Fetch again what was not handed over. A rebalance does so too, but may have done it before the chunk came."""
        for place in list(self._skipped):
            if self._is_stale(generation):
                return
            self._skipped.discard(place)
            if place in self.assignment():
                wanted = self._next[place] = self._next.get(place) or await self._first_offset(place)
                log.info("transport.sought", partition=place.partition, wanted=wanted)
                await self._thread.call_thread(self._thread.seek, place, wanted)

    async def _hand_over(self, place: Any, chunk: Chunk, generation: int) -> None:
        """Let the chunk be processed, if it is the partition's next one; returns when there is room for another."""
        if self._is_stale(generation) or place in self._skipped:
            self._skipped.add(place)
            return
        wanted = self._next.get(place)
        if wanted is None:
            wanted = self._next[place] = await self._first_offset(place)
        if chunk.start > wanted:
            earliest = (await self.earliest_offsets(place)).get(place, 0)
            if earliest <= wanted:
                self._skipped.add(place)
                return
            log.error("transport.expired", partition=place.partition, first_lost=wanted, first_left=earliest)
        elif chunk.end <= wanted:
            await self._check_the_end(place, wanted)
            return
        elif chunk.start < wanted:
            chunk = chunk.since(wanted)
        if self._is_stale(generation):
            self._skipped.add(place)
            return
        message = ConsumerMessage(
            place.topic, place.partition, chunk.end - 1, 0.0, 0, (), None, chunk, None, 0, 0, place,
            generation_id=generation,
        )  # fmt: skip
        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        if self.suspend_flow.is_set() or self._is_stale(generation):
            self._skipped.add(place)  # it may have been handed over: the agent knows what it has taken
        else:
            self._next[place] = chunk.end

    async def _first_offset(self, place: Any) -> int:
        committed = self._committed_offset[place]
        if committed is not None:
            return int(committed)
        return int((await self.earliest_offsets(place)).get(place, 0))

    async def _check_the_end(self, place: Any, wanted: int) -> None:
        """Old records are no news, but for a log that ends before what was committed of it."""
        end = (await self._thread.highwaters(place)).get(place, wanted)
        if end < wanted:
            raise Stop(
                f"{place.topic}/{place.partition} ends at {end}, but its readings up to {wanted} were processed: the "
                "topic was made anew. Stop the agents, delete their consumer group and changelog topic, and start again"
            )

    async def _hand_over_singly(self, place: Any, records: Any, active: Any, generation: int) -> None:
        """As Faust does it, for its changelogs."""
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
    """Faust's aiokafka transport whose `topics` come in chunks. failed: what to do when it can read no longer."""

    Consumer = ChunkConsumer

    def __init__(self, app: Any, topics: frozenset[str], failed: Callable[[BaseException], None]) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.topics = topics
        self.failed = failed
        _install(topics)


class ChunkSchema(faust.Schema):  # type: ignore[misc]  # no types published
    """Keys and values as they are: a chunk is decoded by the core."""

    def compile(self, app: Any, **_: Any) -> Any:
        """A decoder that decodes nothing."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(message.key, message.value, message.headers, message)

        return decode


def _install(topics: frozenset[str]) -> None:
    """aiokafka makes its records by the name of their class, which is the one place where chunks can come from."""
    stock = aiokafka_fetcher.PartitionRecords
    stock = getattr(stock, "stock", stock)

    def records_of(place: Any, *args: Any, **kwargs: Any) -> Any:
        return (ChunkRecords if place.topic in topics else stock)(place, *args, **kwargs)

    records_of.stock = stock  # type: ignore[attr-defined]
    aiokafka_fetcher.PartitionRecords = records_of
