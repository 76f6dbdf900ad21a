"""Dead letters: the raw bytes as received, with where they came from and why they cannot be used as headers."""

from __future__ import annotations

from typing import Final

from streams.gate import Record

VERSION: Final = "1"
MAX_REASON_BYTES: Final = 1024

Headers = list[tuple[str, bytes]]


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
