"""Readings read back from Kafka by offset ranges, through the same gate and the same windows as the agent's.

A range names records for good: the same ranges give the same windows, as long as the topic still holds them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from numpy.typing import NDArray

from schemas.activity import ACTIVITIES
from schemas.errors import Retry
from schemas.events import OffsetRange, TrainingWindow
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.gate import decode_chunk
from streams.intake import Intake, Names
from streams.kafka import is_transient, reader_config
from streams.measures import completed, measure
from streams.quality import Quality, refused_by_device
from streams.records import Record, chunk_of
from streams.windows import NO_LABEL, Windows

READING_SCHEMA: Final = "reading/1"
_RUN = 2_000  # records decoded at a time


class WindowExpired(Exception):
    """Retention has deleted records of the range; training on other ones in their place would be a lie."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What ranges of records hold. window: what was read, with its digest. windows: by device; broken: which of them,
    (n,), lie in a span in which the agent tells of a channel that did not measure, where that was looked at.
    """

    window: TrainingWindow
    windows: dict[str, Windows]
    broken: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


def end_ranges(settings: Settings, partitions: Sequence[int] | None = None, timeout: float = 10) -> list[OffsetRange]:
    """From the first record to behind the last one, for each partition of `activity` (or those given)."""
    topic = settings.topic(ACTIVITY)
    consumer = Consumer(reader_config(settings))
    try:
        if partitions is None:
            metadata = consumer.list_topics(topic, timeout=timeout).topics[topic]
            partitions = sorted(metadata.partitions)
        marks = {number: _marks(consumer, TopicPartition(topic, number), timeout) for number in partitions}
    except KafkaException as error:
        raise Retry(f"offsets of {topic}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    return [OffsetRange(number, low, high) for number, (low, high) in marks.items()]


def _marks(consumer: Consumer, place: TopicPartition, timeout: float) -> tuple[int, int]:
    """First offset and the one behind the last; a partition that was just made has no leader for a moment."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=timeout)
        except KafkaException as error:
            if not is_transient(error.args[0]) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return low, high


def replay(
    settings: Settings,
    ranges: Sequence[OffsetRange],
    devices: Sequence[str] | None = None,
    *,
    labelled: bool = False,
    most: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Replayed:
    """Windows of the records in the ranges, of some devices or all. labelled: only windows with a label, or a topic
    that was filled for a day would not fit into memory. most: of each range about so many, from its beginning; it then
    ends earlier in `window`.

    Raises WindowExpired where retention has passed the start of a range, Retry where the broker does not answer.
    """
    topic = settings.topic(ACTIVITY)
    digest = hashlib.sha256()
    parts: dict[str, list[tuple[Windows, NDArray[np.bool_]]]] = {}
    keys = None if devices is None else {device.encode() for device in devices}
    rows, read = 0, list(ranges)
    for number, wanted in sorted(enumerate(ranges), key=lambda item: item[1].partition):
        if wanted.end <= wanted.start:
            continue
        reader = _PartitionReader(keys, labelled=labelled)
        for records in _runs(settings, topic, wanted, stopping):
            for record in records:
                if keys is None or record.key in keys:
                    digest.update(record.value or b"")
            rows += reader.take(records, parts)
            if most is not None and reader.kept >= most:
                read[number] = OffsetRange(wanted.partition, wanted.start, records[-1].offset + 1)
                break
    one = devices is not None and len(devices) == 1
    joined = {name: _joined_windows([windows for windows, _ in found]) for name, found in parts.items()}
    window = TrainingWindow(
        topic=topic,
        ranges=read,
        rows=rows,
        sha256=digest.hexdigest(),
        device=devices[0] if devices is not None and one else None,
        devices=None if devices is None or one else list(devices),
        reading=READING_SCHEMA,
        **_bounds(joined),
    )
    broken = {name: np.concatenate([each for _, each in found]) for name, found in parts.items()}
    return Replayed(window, joined, broken)


def _bounds(windows: dict[str, Windows]) -> dict[str, Any]:
    """What a training window says of its labelled windows: event times of the first and last reading, counts."""
    labelled = [part.chosen(part.labels != NO_LABEL) for part in windows.values()]
    labelled = [part for part in labelled if len(part)]
    if not labelled:
        return {"windows": 0}
    counts = np.bincount(np.concatenate([part.labels for part in labelled]), minlength=len(ACTIVITIES)).tolist()
    return {
        "from_ts": min(float(part.start[0]) for part in labelled),
        "to_ts": max(float(part.end[-1]) for part in labelled),
        "windows": sum(map(len, labelled)),
        "activities": {name: count for name, count in zip(ACTIVITIES, counts, strict=True) if count},
    }


def _runs(settings: Settings, topic: str, wanted: OffsetRange, stopping: Callable[[], bool]) -> Iterator[list[Record]]:
    """The range's records in offset order, some at a time."""
    consumer = Consumer(reader_config(settings, **{"enable.partition.eof": True}))
    place = TopicPartition(topic, wanted.partition, wanted.start)
    try:
        low, high = consumer.get_watermark_offsets(place, timeout=10)
        if low > wanted.start:
            raise WindowExpired(f"{topic}/{wanted.partition} begins at {low}, the window at {wanted.start}")
        if high < wanted.end:
            raise WindowExpired(
                f"{topic}/{wanted.partition} ends at {high}, the window at {wanted.end}: another topic?"
            )
        consumer.assign([place])
        silent = 0
        while not stopping():
            messages = consumer.consume(_RUN, timeout=0.2)  # which a run that is not full waits out
            if any(
                message.error() is not None and message.error().code() == KafkaError._AUTO_OFFSET_RESET
                for message in messages
            ):
                raise WindowExpired(f"{topic}/{wanted.partition}: retention has passed the window while it was read")
            good = [message for message in messages if message.error() is None and message.offset() < wanted.end]
            if good:
                yield [_record(message) for message in good]
            # The end may be a transaction's marker, which is never delivered: then only the position tells.
            if any(_at_end(message, wanted.end) for message in messages) or (
                consumer.position([place])[0].offset >= wanted.end
            ):
                return
            silent = 0 if messages else silent + 1
            if silent >= 150:
                raise Retry(f"{topic}/{wanted.partition} gave nothing for 30 s")
    except KafkaException as error:
        raise Retry(f"{topic}/{wanted.partition}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _at_end(message: Message, end: int) -> bool:
    error = message.error()
    if error is None:
        return bool(message.offset() + 1 >= end)
    return bool(error.code() == KafkaError._PARTITION_EOF and message.offset() >= end)


def _record(message: Message) -> Record:
    _, timestamp = message.timestamp()
    return Record(message.offset(), timestamp / 1000 if timestamp > 0 else None, message.key(), message.value())


class _PartitionReader:
    """Turns runs of one partition's records into windows, device by device."""

    def __init__(self, keys: set[bytes] | None, *, labelled: bool) -> None:
        self.keys = keys
        self.labelled = labelled
        self.kept = 0  # windows
        self.names = Names(lambda _, row: self.intake.reserve(row))
        self.intake = Intake()
        self.quality: dict[int, Quality] = {}

    def take(self, records: Sequence[Record], parts: dict[str, list[tuple[Windows, NDArray[np.bool_]]]]) -> int:
        wanted = [record for record in records if self.keys is None or record.key in self.keys]
        chunk = chunk_of(wanted)
        rows, rejections = decode_chunk(chunk, self.names)
        taken = self.intake.take(rows, chunk)
        windows = taken.windows
        if len(windows):
            windows = replace(windows, measures=measure(completed(windows.values)))
        refused = refused_by_device([*rejections, *taken.rejections], self.names)
        for row in sorted({*taken.window_rows.tolist(), *refused}):
            found = windows.chosen(taken.window_rows == row)
            broken = self.quality.setdefault(row, Quality()).broken(found, refused.get(row, ()))
            if self.labelled:
                kept = found.labels != NO_LABEL
                found, broken = found.chosen(kept), broken[kept]
            if len(found):
                self.kept += len(found)
                parts.setdefault(self.names.by_row[row], []).append((found, broken))
        return len(taken.readings)


def _joined_windows(parts: Sequence[Windows]) -> Windows:
    columns = ([getattr(part, name) for part in parts] for name in Windows.__slots__ if name != "measures")
    return Windows(*map(np.concatenate, columns))
