"""Batches read without an object for each number are the batches that the schema's own decoder reads."""

import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.gate
from schemas.activity import CHANNEL_NAMES, CHANNELS, ReadingBatch, field_of
from streams.columns import NotColumns, reader
from streams.gate import decode_chunk
from streams.intake import Names
from streams.records import Record, chunk_of
from tests.chaos.corpus import NOW, cases
from tests.unit.test_gate import batch, with_raw

pytest.importorskip("simdjson", reason="no wheel of pysimdjson for this Python")
read = reader()
OPTIONAL = [channel.name for channel in CHANNELS if not channel.required]


def doubles(column):
    return None if column is None else np.frombuffer(column)


def assert_same(value):
    """What is read is what `ReadingBatch` reads."""
    found, wanted = read(value), msgspec.json.decode(value, type=ReadingBatch)
    assert (found.device, found.act, found.count) == (wanted.device, wanted.act, len(wanted.ts))
    for ours, theirs in zip(
        [found.ts, *found.channels],
        [wanted.ts, *(getattr(wanted, field_of(name)) for name in CHANNEL_NAMES)],
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(doubles(ours), theirs)


def test_a_batch_is_read_with_or_without_its_optional_channels():
    assert_same(json.dumps(batch()).encode())
    assert_same(json.dumps(batch(1, act=["wlk"])).encode())
    assert_same(json.dumps(batch(act=["wlk", None, "sit"], seq=..., **dict.fromkeys(OPTIONAL, ...))).encode())
    assert_same(json.dumps(batch(act=..., seq=None, **dict.fromkeys(OPTIONAL))).encode())
    assert_same(json.dumps(batch(firmware="7.1", nested={"deep": 1})).encode())


number = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(number, min_size=1, max_size=5))
def test_each_number_is_read_to_the_last_bit(numbers):
    """A float that is off by one bit is another window, and an id of an event that was told otherwise."""
    value = json.dumps(batch(len(numbers), **{"gravity.x": numbers})).encode()
    found = doubles(read(value).channels[CHANNEL_NAMES.index("gravity.x")])
    wanted = msgspec.json.decode(value, type=ReadingBatch).gravity_x
    assert struct.pack(f"{len(wanted)}d", *(each + 0.0 for each in wanted)) == (found + 0.0).tobytes()


@pytest.mark.parametrize(
    "value",
    [
        json.dumps(batch())[:-1].encode(),
        json.dumps(batch(0)).encode(),
        json.dumps(batch(1001)).encode(),
        json.dumps(batch(seq=[1, 2])).encode(),
        json.dumps(batch(seq=[1, 2, 2.5])).encode(),
        json.dumps(batch(act=["wlk"])).encode(),
        json.dumps(batch(act="fly")).encode(),
        json.dumps(batch(**{"attitude.roll": None})).encode(),
        json.dumps(batch(**{"attitude.roll": ...})).encode(),
        json.dumps(batch(weight="heavy")).encode(),
        json.dumps(batch(device="a b")).encode(),
        *(
            with_raw(batch(), **{"gravity.x": text})
            for text in (
                "[1,2]",
                "[1,2,true]",
                '[1,2,"3"]',
                "[1,2,null]",
                "[[1],[2],[3]]",
                "[[1,2,3],[],[]]",
                "[1,2,NaN]",
            )
        ),
        *(
            with_raw(batch(), **{"gravity.x": text})
            for text in ("[1,2,1e400]", "[1,2,18446744073709551616]", "3", "{}")
        ),
        with_raw(batch(), **{"gravity.x": '[1,2,3],"gravity.x":[4,5,6]'}),
        with_raw(batch(), ts='[1,2,3],"\\u0074s":[4,5,6]'),
        b"[]",
        b"",
        None,
    ],
)
def test_what_is_not_certainly_a_batch_is_left_to_be_looked_at(value):
    """Which class it is rejected by, or whether it is good after all, `decode` tells."""
    with pytest.raises(NotColumns):
        read(value)


def test_a_chunk_is_the_same_where_simdjson_is_not_installed(monkeypatch):
    """The newest Python must not reject, or accept, what the one before did not."""
    good = [(b"phone-07", json.dumps(batch(count)).encode()) for count in (1, 3, 50)]
    bad = [(case.key, case.value) for case in cases()]
    chunk = chunk_of([Record(n, NOW, key, value) for n, (key, value) in enumerate([*good, *bad, *good])])
    names = Names()
    rows, rejected = decode_chunk(chunk, names)
    monkeypatch.setattr(streams.gate, "reader", lambda: None)
    other_rows, other_rejected = decode_chunk(chunk, names)
    assert len(rows) >= 108
    assert rejected == other_rejected
    for name in rows.__slots__:
        np.testing.assert_array_equal(getattr(rows, name), getattr(other_rows, name))
