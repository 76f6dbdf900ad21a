"""Dead letters: the raw bytes as received, with where they came from and why they cannot be used as headers."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from schemas.topology import DEAD_LETTER_BYTES
from streams.records import Record

VERSION: Final = "1"
MAX_REASON_BYTES: Final = 1024
# What the broker counts besides a record's key, value and headers, and our own headers at their longest.
_OVERHEAD_BYTES: Final = 4 * 1024

Headers = list[tuple[str, bytes]]


def fitting(record: Record, limit: int = DEAD_LETTER_BYTES) -> tuple[Record, str]:
    """The record, if the dead-letter topic can take it, else what of it can; and what was cut, to be added to a reason.

    A broker limits a batch as compressed: a few kilobytes of gzip may hold more than any topic takes uncompressed, and
    a dead letter that can never be written would stop the agent at that record for good.
    """
    key, value, headers = record.key, record.value, record.headers
    room = limit - _OVERHEAD_BYTES
    of_headers = sum(len(name.encode()) + len(content or b"") + 10 for name, content in headers)
    size = len(key or b"") + len(value or b"") + of_headers
    if size <= room:
        return record, ""
    if of_headers > room // 4:
        headers, of_headers = (), 0
    if key is not None:
        key = key[: room // 4]
    if value is not None:
        value = value[: room - of_headers - len(key or b"")]
    return replace(record, key=key, value=value, headers=headers), f" (cut: {size} bytes, at most {room} fit)"


def dead_letter_headers(topic: str, partition: int, record: Record, reject_class: str, reason: str) -> Headers:
    """The received headers followed by our `dlq.*`; timestamp in milliseconds, -1 where the record has none."""
    timestamp = -1 if record.timestamp is None else round(record.timestamp * 1000)
    ours = {
        "dlq.topic": topic,
        "dlq.partition": str(partition),
        "dlq.offset": str(record.offset),
        "dlq.timestamp": str(timestamp),
        "dlq.class": reject_class,
        "dlq.reason": reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore"),
        "dlq.version": VERSION,
    }
    return [*record.headers, *((name, value.encode()) for name, value in ours.items())]
