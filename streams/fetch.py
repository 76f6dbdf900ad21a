"""Readings of assigned partitions as chunks, fetched by librdkafka: whose group they are and what is committed is not
its business.

librdkafka fetches, checks and takes records apart in threads of its own that never wait for Python; aiokafka does it in
Python, on the core that the agent needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, Final, overload

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import Stop
from streams.kafka import is_transient
from streams.records import Chunk, Headers

log = structlog.get_logger()

# A chunk is about so large: enough for its fixed costs not to show, and soon done.
CHUNK_RECORDS: Final = 8_000
CHUNK_BYTES: Final = 4 * 1024 * 1024
# What librdkafka holds for us stays below this, and one answer of each broker (1 MiB a partition): the backlog in the
# process is bounded, however slow the agent is.
QUEUED_KIB: Final = 16 * 1024
# An idle wait; a rebalance and a shutdown may have to wait for it.
IDLE_S: Final = 0.2
_SECONDS: Final = 5.0
_CONFIG: Final = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",  # what was aborted was never sent
    "auto.offset.reset": "error",  # readings that are gone are told, not stepped over
    "enable.partition.eof": True,  # a log may end with markers of transactions, which are to be committed, too
    "check.crcs": True,
    "queued.min.messages": 50_000,
    "queued.max.messages.kbytes": QUEUED_KIB,
    "fetch.queue.backoff.ms": 10,
}


class ChunkFetcher:
    """Chunks of one topic's partitions from given offsets on, each going on where the partition's last one ended.

    One for each assignment, so that nothing is left over from where a partition was read before; and because a consumer
    that has waited without partitions may take a second to begin. config: librdkafka's, with `group.id`, in whose name
    only the right to read is asked. For one event loop.
    """

    def __init__(self, topic: str, config: Mapping[str, Any], starts: Mapping[int, int]) -> None:
        self.topic = topic
        self.next = dict(starts)  # the offset with which the next chunk of a partition begins
        self._config = {**config, **_CONFIG}
        self._thread = ThreadPoolExecutor(1, "fetch")
        self._records = CHUNK_RECORDS // 4
        self._said: set[int] = set()  # errors, until something comes again
        self._consumer = self._begun()

    def _begun(self) -> Consumer:
        consumer = Consumer(self._config)
        consumer.assign([TopicPartition(self.topic, *place) for place in self.next.items()])
        return consumer

    async def fetch(self) -> list[tuple[int, Chunk]]:
        """What is there, at most CHUNK_RECORDS records; waits a little if that is nothing. Raises Stop.

        Raises Stop if records are damaged, if Kafka refuses to be read, or if a log is shorter than what was read.
        """
        consume = self._consumer.consume
        messages = consume(self._records, 0)
        if not messages:
            if not (messages := await self._in_thread(consume, 1, IDLE_S)):
                return []
            messages += consume(self._records, 0)
        chunks: list[tuple[int, Chunk]] = []
        size = count = 0
        for (failed, partition), run in groupby(messages, _kind):
            records = list(run)
            found = [await self._told(each) for each in records] if failed else [self._chunk(partition, records)]
            for chunk in (each for each in found if each is not None):  # the end of a log is one without records
                chunks.append((partition, chunk))
                size += sum(map(len, filter(None, chunk.values)))
                count += len(chunk)
        if count:
            self._records = max(1, min(CHUNK_RECORDS, CHUNK_BYTES * count // (size + 1)))
            self._said.clear()
        return chunks

    def close(self) -> None:
        """Fetch nothing more. What is under way ends in its own time: a broker that is away keeps nobody waiting."""
        self._thread.submit(self._consumer.close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, call: Any, *given: Any, **more: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*given, **more))

    def _chunk(self, partition: int, messages: list[Message]) -> Chunk | None:
        """The records, which follow each other, as a chunk; None if they have been handed over before."""
        wanted = self.next[partition]
        first, last = messages[0].offset(), messages[-1].offset()
        if last < wanted:
            return None
        # What lies between is holes: markers of transactions, or what compaction has taken.
        offsets: Sequence[int] = range(first, last + 1)
        if len(offsets) != len(messages):
            offsets = [message.offset() for message in messages]
        chunk = Chunk(
            min(first, wanted),
            last + 1,
            offsets,
            [message.timestamp()[1] for message in messages],
            [message.key() for message in messages],
            [message.value() for message in messages],
            _HeadersOf(messages),
        )
        if first < wanted:
            chunk = chunk.since(wanted)
        self.next[partition] = chunk.end
        return chunk

    async def _told(self, message: Message) -> Chunk | None:
        """What stands in a record's place: nothing but the end of a log is a chunk."""
        error: KafkaError = message.error()
        code, partition = error.code(), message.partition()
        if code == KafkaError._PARTITION_EOF:
            end, wanted = message.offset(), self.next[partition]
            if end <= wanted:
                return None
            self.next[partition] = end
            return Chunk(wanted, end, [], [], [], [], [])
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            await self._look_again(partition)
        elif error.fatal() or not (code in _PASSING or is_transient(error)):
            raise Stop(f"{self.topic}/{partition} cannot be read: {error.str()}")
        elif code not in self._said:
            self._said.add(code)
            log.warning("fetch.waiting", error=error.str())
        return None

    async def _look_again(self, partition: int) -> None:
        """The broker has no record at the offset that is wanted."""
        wanted = self.next[partition]
        try:
            low, high = await self._in_thread(
                self._consumer.get_watermark_offsets, TopicPartition(self.topic, partition), timeout=_SECONDS
            )
        except KafkaException as error:
            log.warning("fetch.waiting", partition=partition, error=error.args[0].str())
            low = high = wanted
        if high < wanted:
            raise Stop(
                f"{self.topic}/{partition} ends at {high}, but its readings up to {wanted} were processed: the topic "
                "was made anew. Stop the agents, delete their consumer group and changelog topic, and start again"
            )
        if low > wanted:
            log.error("fetch.expired", partition=partition, first_lost=wanted, first_left=low)
        await asyncio.sleep(IDLE_S)
        self.next[partition] = max(low, wanted)
        await self._in_thread(self._consumer.close)
        self._consumer = self._begun()


class _HeadersOf(Sequence[Headers]):
    """Headers of messages, looked at only for a dead letter."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def __len__(self) -> int:
        return len(self.messages)

    @overload
    def __getitem__(self, index: int) -> Headers: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Headers]: ...
    def __getitem__(self, index: int | slice) -> Headers | Sequence[Headers]:
        if isinstance(index, slice):
            return _HeadersOf(self.messages[index])
        return self.messages[index].headers() or ()

    def __iter__(self) -> Iterator[Headers]:
        return (self[index] for index in range(len(self)))


def _kind(message: Message) -> tuple[bool, int]:
    return message.error() is not None, message.partition()


# Told while a broker or a topic is away, or moves; the fetch goes on by itself.
_PASSING: Final = {
    KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError._SSL,
}
