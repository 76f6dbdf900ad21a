"""Dead letters carry what came, where it came from and why it could not be used."""

from __future__ import annotations

from schemas.topology import ACCEPTED_BYTES, DEAD_LETTER_BYTES
from streams.deadletters import MAX_REASON_BYTES, dead_letter_headers, fitting
from streams.records import Record


def test_headers_tell_where_a_dead_letter_came_from_and_why():
    """Enough to find the record again, and to send it once more after the fault has been mended."""
    record = Record(81_231, 1_700_000_000.123, b"phone-07", b"{}")
    assert dead_letter_headers("activity", 2, record, "schema", "Object missing field `ts`") == [
        ("dlq.topic", b"activity"),
        ("dlq.partition", b"2"),
        ("dlq.offset", b"81231"),
        ("dlq.timestamp", b"1700000000123"),
        ("dlq.class", b"schema"),
        ("dlq.reason", b"Object missing field `ts`"),
        ("dlq.version", b"1"),
    ]


def test_received_headers_come_first_and_unchanged():
    """Repeated names and empty values are allowed in Kafka, and a forged `dlq.class` comes before ours."""
    received = (("a", b"1"), ("a", b"2"), ("empty", None), ("dlq.class", b"forged"), ("raw", b"\xff\x00"))
    headers = dead_letter_headers("activity", 0, Record(0, None, None, None, received), "syntax", "x")
    assert tuple(headers[:5]) == received
    assert [value for name, value in headers if name == "dlq.class"][-1] == b"syntax"


def test_a_record_without_a_timestamp_has_minus_one_as_kafka_writes_it():
    """0 would be 1970."""
    assert ("dlq.timestamp", b"-1") in dead_letter_headers("activity", 0, Record(0, None, None, None), "syntax", "x")


def test_a_reason_is_at_most_a_kilobyte_of_whole_characters():
    """It may quote what a stranger sent: umlauts, half surrogate pairs, any length."""
    for reason in ("ü" * 5000, "x" + "🙂" * 5000, "\ud800" * 5000):
        value = dict(dead_letter_headers("activity", 0, Record(0, None, None, None), "syntax", reason))["dlq.reason"]
        assert MAX_REASON_BYTES - 4 < len(value) <= MAX_REASON_BYTES
        value.decode("utf-8")


def test_whatever_the_activity_topic_takes_is_dead_lettered_whole():
    """The two limits belong together."""
    record = Record(0, None, b"k" * 64, b"x" * (ACCEPTED_BYTES - 1000), (("trace", b"y" * 100),))
    assert fitting(record) == (record, "")


def test_what_was_larger_before_compression_is_cut_to_what_fits():
    """100 kB of gzip may hold 100 MB; a dead letter that can't be written would stop the agent there for good."""
    limit = 100_000
    huge = b"v" * 1_000_000
    for key, value, headers in (
        (b"phone-07", huge, (("trace", b"1"),)),
        (huge, huge, ()),
        (huge, None, ()),
        (None, b"v", (("h", huge),)),
        (None, huge, tuple(("h" * 100, b"") for _ in range(1000))),
    ):
        cut, note = fitting(Record(7, 1.0, key, value, headers), limit)
        sent = dead_letter_headers("activity", 0, cut, "oversize", "r" * 2000)
        size = len(cut.key or b"") + len(cut.value or b"") + sum(len(name) + len(text) + 10 for name, text in sent)
        assert size <= limit
        assert size > limit - 5000 or value in {None, b"v"}  # as much as fits
        assert (cut.offset, cut.timestamp) == (7, 1.0)
        assert (key or b"").startswith(cut.key or b"")
        assert (value or b"").startswith(cut.value or b"")
        assert "bytes, at most 95904 fit" in note
    assert DEAD_LETTER_BYTES > ACCEPTED_BYTES
