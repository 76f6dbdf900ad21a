"""What librdkafka fetches becomes chunks, on a real broker: in the log's order, with nothing left out unsaid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import Stop
from schemas.topology import ACTIVITY
from streams import topics
from streams.fetch import ChunkFetcher
from streams.kafka import client_config, producer_config
from streams.records import Chunk

PLACE = 1


@pytest.fixture
def activity(settings):
    """The settings, with topics."""
    topics.create(settings)
    return settings


def send(settings, values, **more):
    producer = Producer(producer_config(settings, **more))
    for number, value in enumerate(values):
        producer.produce(
            settings.topic(ACTIVITY), value, b"k", partition=PLACE, timestamp=1000 + number, headers=[("h", b"x")]
        )
    assert producer.flush(20) == 0


def fetched(settings, starts: dict[int, int], until: Callable[[list[Chunk]], bool], after: float = 0) -> list[Chunk]:
    """Chunks of the partition from its start on, as soon as they are what is waited for; asked after some seconds."""

    async def fetch() -> list[Chunk]:
        fetcher = ChunkFetcher(
            settings.topic(ACTIVITY), client_config(settings, **{"group.id": f"{settings.namespace}any"}), starts
        )
        found: list[Chunk] = []
        try:
            await asyncio.sleep(after)
            async with asyncio.timeout(30):
                while not until(found):
                    found += [chunk for partition, chunk in await fetcher.fetch() if partition == PLACE]
        finally:
            fetcher.close()
        return found

    return asyncio.run(fetch())


def through(end: int) -> Callable[[list[Chunk]], bool]:
    return lambda chunks: bool(chunks) and chunks[-1].end >= end


def values(chunks):
    return [value for chunk in chunks for value in chunk.values]


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_records_become_columns_in_the_logs_order_whatever_their_compression(activity, codec):
    """Producers compress as they like; a chunk goes on where the last one ended."""
    sent = [str(number).encode() for number in range(5000)]
    send(activity, sent, **{"compression.type": codec})
    chunks = fetched(activity, {PLACE: 0, 0: 0}, through(5000))
    assert values(chunks) == sent
    assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks[:-1])]
    record = chunks[0].record(1)
    assert (record.offset, record.timestamp, record.key, record.headers) == (1, 1.001, b"k", (("h", b"x"),))


def test_it_goes_on_in_the_middle_of_a_batch(activity):
    """A broker sends whole batches; what was processed before is not processed again."""
    send(activity, [b"a", b"b", b"c"])
    (chunk,) = fetched(activity, {PLACE: 1}, through(3))
    assert (chunk.start, list(chunk.offsets), chunk.values) == (1, [1, 2], [b"b", b"c"])


def test_aborted_readings_and_markers_are_left_out_and_stepped_over(activity):
    """What was aborted was never sent; a marker is no reading, but it has an offset that is to be committed."""
    producer = Producer(producer_config(activity, **{"transactional.id": f"{activity.namespace}sender"}))
    producer.init_transactions(20)
    for value, good in ((b"aborted", False), (b"good", True)):
        producer.begin_transaction()
        producer.produce(activity.topic(ACTIVITY), value, b"k", partition=PLACE)
        producer.flush(20)
        (producer.commit_transaction if good else producer.abort_transaction)(20)
    chunks = fetched(activity, {PLACE: 0}, through(4))  # two readings and two markers
    assert values(chunks) == [b"good"]
    assert (chunks[0].start, chunks[-1].end) == (0, 4)


def test_readings_that_the_topic_keeps_no_longer_are_stepped_over_and_told(activity, capsys):
    """An agent that was away for longer than the topic's retention must not stand still, nor hide what was lost."""
    send(activity, [b"a", b"b", b"c"])
    admin = AdminClient(client_config(activity))
    place = TopicPartition(activity.topic(ACTIVITY), PLACE, 2)
    for done in admin.delete_records([place]).values():
        done.result()
    chunks = fetched(activity, {PLACE: 0}, through(3))
    assert values(chunks) == [b"c"]
    said = capsys.readouterr().out
    assert "fetch.expired" in said
    assert "first_left=2" in said


def test_a_topic_that_was_made_anew_is_not_read(activity):
    """Its first readings have offsets that were processed before: to go on in silence would lose them."""
    send(activity, [b"a"])
    with pytest.raises(Stop, match="made anew"):
        fetched(activity, {PLACE: 7}, through(8))


@pytest.mark.parametrize("after", [0, 2])
def test_a_batch_that_was_damaged_is_not_read(activity, servers, after):
    """A flipped bit in a number is a reading that nobody sent, also where the log's end is told right behind it."""
    send(activity, [b"first", b"to be damaged"])
    (segment,) = servers.stack.home.glob(f"**/{activity.topic(ACTIVITY)}-{PLACE}/*.log")
    content = segment.read_bytes()
    assert b"to be damaged" in content
    segment.write_bytes(content.replace(b"to be damaged", b"to be dAmaged"))
    with pytest.raises(Stop, match="cannot be read"):
        fetched(activity, {PLACE: 0}, through(2), after)


def test_a_group_that_may_not_read_is_told(activity):
    """A topic that is gone is waited for; anything that no waiting mends ends the process with a reason."""
    settings = activity.model_copy(update={"namespace": "no-such-"})

    async def fetch() -> None:
        fetcher = ChunkFetcher(settings.topic(ACTIVITY), client_config(settings, **{"group.id": "any"}), {0: 0})
        for _ in range(3):
            assert await fetcher.fetch() == []
        fetcher.close()

    asyncio.run(fetch())
