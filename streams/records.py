"""Raw Kafka records, one by one and as the columns of a chunk: what the agent's core is fed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Headers = Sequence[tuple[str, bytes]]
NO_TIMESTAMP = -1  # as Kafka writes it


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as received. timestamp: its own, seconds since the epoch, None where it has none."""

    offset: int
    timestamp: float | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one partition in offset order, as one fetch brought them: n of each column.

    start ≤ offsets < end: every record of the partition in between is here. Offsets may have holes, where the log
    holds markers of transactions or has lost records to compaction. timestamps: ms since the epoch, or NO_TIMESTAMP.
    """

    start: int
    end: int
    offsets: Sequence[int]
    timestamps: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: Sequence[Headers]

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, index: int) -> Record:
        """One of the records."""
        stamp = self.timestamps[index]
        return Record(
            self.offsets[index],
            None if stamp < 0 else stamp / 1000,
            self.keys[index],
            self.values[index],
            tuple(self.headers[index]),
        )

    def since(self, offset: int) -> Chunk:
        """The part from an offset on."""
        skipped = sum(1 for known in self.offsets if known < offset)
        return Chunk(
            max(self.start, offset),
            self.end,
            self.offsets[skipped:],
            self.timestamps[skipped:],
            self.keys[skipped:],
            self.values[skipped:],
            self.headers[skipped:],
        )


def chunk_of(records: Sequence[Record]) -> Chunk:
    """The records, which are in offset order, as columns."""
    return Chunk(
        records[0].offset if records else 0,
        records[-1].offset + 1 if records else 0,
        [record.offset for record in records],
        [NO_TIMESTAMP if record.timestamp is None else round(record.timestamp * 1000) for record in records],
        [record.key for record in records],
        [record.value for record in records],
        [record.headers for record in records],
    )
