"""The chunk transport: what one fetch brings becomes one chunk; and what it leans on is still there."""

from __future__ import annotations

import importlib
import inspect

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streams.transport import PRIVATE, ChunkRecords

PLACE = TopicPartition("activity", 2)
CONTROL = 0x20
ABORT = b"\x00\x00\x00\x00"


def batch(first, values, *, codec=0, producer=-1, transactional=False):
    """A record batch as a broker sends it: record i at offset first + i, timestamp 1000 + i."""
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, 0, 0, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, 1000 + index, b"k", value, [("h", b"x")])
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")  # the checksum does not cover it
    return bytes(raw)


def chunk(raw, start, aborted=()):
    records = ChunkRecords(PLACE, MemoryRecords(raw), list(aborted), start, None, None, True, READ_COMMITTED)
    (found,) = records
    assert records.next_fetch_offset == found.end
    return found


@pytest.mark.parametrize(("where", "name"), PRIVATE)
def test_what_the_transport_leans_on_is_there(where, name):
    """Private parts move without notice; an upgrade of Faust or aiokafka has to fail here, not at night."""
    module, _, attribute = where.rpartition(".")
    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:
        owner = getattr(importlib.import_module(module), attribute)
    assert hasattr(owner, name)


def test_the_parts_that_are_replaced_take_what_they_took():
    """A method that is overridden with other arguments than the library calls it with fails only when it is called."""
    assert list(inspect.signature(PartitionRecords.__init__).parameters) == [
        "self",
        "tp",
        "records",
        "aborted_transactions",
        "fetch_offset",
        "key_deserializer",
        "value_deserializer",
        "check_crcs",
        "isolation_level",
    ]
    from faust.transport.consumer import Consumer
    from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

    assert list(inspect.signature(Consumer._drain_messages).parameters) == ["self", "fetcher"]
    assert list(inspect.signature(Consumer._wait_next_records).parameters) == ["self", "timeout"]
    assert list(inspect.signature(Consumer._commit).parameters) == ["self", "offsets"]
    assert list(inspect.signature(AIOKafkaConsumerThread._create_worker_consumer).parameters) == ["self", "transport"]


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_a_fetch_is_one_chunk_of_columns(codec):
    """Producers compress as they like."""
    found = chunk(batch(40, [b"a", b"b"], codec=codec) + batch(42, [b"c"], codec=codec), 40)
    assert (found.start, found.end) == (40, 43)
    assert found.offsets == [40, 41, 42]
    assert found.values == [b"a", b"b", b"c"]
    assert found.keys == [b"k"] * 3
    assert found.timestamps == [1000, 1001, 1000]
    assert found.record(1).headers == (("h", b"x"),)


def test_a_fetch_from_the_middle_of_a_batch_leaves_out_what_came_before():
    """A broker sends whole batches."""
    found = chunk(batch(40, [b"a", b"b", b"c"]), 41)
    assert (found.start, found.offsets, found.values) == (41, [41, 42], [b"b", b"c"])


def test_aborted_readings_and_markers_are_left_out_and_stepped_over():
    """A sender's aborted transaction was never sent; its marker is no reading, but it has an offset to commit."""
    aborted = batch(0, [b"a", b"b"], producer=7, transactional=True)
    good = batch(3, [b"c"])
    builder = DefaultRecordBatchBuilder(2, 0, 1, 7, 0, 0, 1 << 20)
    builder.append(0, 1000, ABORT, b"\x00\x00\x00\x00\x00\x00", [])
    marker = bytearray(builder.build())
    marker[:8] = (2).to_bytes(8, "big")
    marker[22] |= CONTROL
    marker[17:21] = crc(bytes(marker[21:]))
    found = chunk(aborted + bytes(marker) + good, 0, aborted=[(7, 0)])
    assert (found.start, found.end, found.offsets, found.values) == (0, 4, [3], [b"c"])
    only = chunk(aborted + bytes(marker), 0, aborted=[(7, 0)])
    assert (only.start, only.end, only.offsets) == (0, 3, [])


def crc(covered):
    from aiokafka.record.util import calc_crc32c

    return calc_crc32c(covered).to_bytes(4, "big")


def test_a_batch_that_was_damaged_on_its_way_is_not_read():
    """A flipped bit in a number is a reading that nobody sent."""
    raw = bytearray(batch(0, [b"abc"]))
    raw[-3] ^= 1
    with pytest.raises(CorruptRecordException, match="activity/2"):
        chunk(bytes(raw), 0)


def test_the_part_of_a_chunk_from_an_offset_on():
    """What was processed before a rebalance is not processed again."""
    whole = chunk(batch(40, [b"a", b"b", b"c"]), 40)
    part = whole.since(42)
    assert (part.start, part.end, part.offsets, part.values, len(part)) == (42, 43, [42], [b"c"], 1)
