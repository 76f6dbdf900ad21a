"""Events read from their topics as anyone may: from the beginning, joining no group, committed records only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.envelope import Envelope, decode
from schemas.errors import Reject, Retry
from schemas.settings import Settings
from schemas.topology import Topic
from streams.kafka import reader_config

log = structlog.get_logger()

SILENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Logged:
    """An event where it lies. written: when the broker got it, seconds since the epoch."""

    topic: Topic
    partition: int
    offset: int
    written: float
    envelope: Envelope


def read_events(
    settings: Settings,
    topics: Sequence[Topic],
    *,
    follow: bool = False,
    since: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Logged | None]:
    """Events of the topics, oldest first within each; up to the end as it is now, or for ever with `follow`.

    since: only those written at or after, seconds since the epoch. With `follow`, None comes about twice a second while
    nothing happens, so that a caller can do something else. Raises Retry if the broker does not answer; with `follow`
    only at the start, later it is waited for.
    """
    names = {settings.topic(topic): topic for topic in topics}
    for message in read_records(settings, topics, follow=follow, since=since, stopping=stopping):
        if message is None:
            yield None
        elif (logged := _logged(message, names[message.topic()])) is not None:
            yield logged


def read_records(
    settings: Settings,
    topics: Sequence[Topic],
    *,
    follow: bool = False,
    since: float | None = None,
    newest: int | None = None,
    places: Mapping[tuple[str, int], int] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Message | None]:
    """The same for raw records. newest: only so many offsets of each partition. places: (topic's name, partition) →
    offset to begin at, where known.
    """
    names = {settings.topic(topic) for topic in topics}
    consumer = Consumer(reader_config(settings, **{"auto.offset.reset": "earliest", "enable.partition.eof": True}))
    try:
        begin = _places(consumer, names, since)
        if newest is not None:
            begin = [_newest(consumer, place, newest) for place in begin]
        for place in begin:
            place.offset = (places or {}).get((place.topic, place.partition), place.offset)
        consumer.assign(begin)
        ahead = {(place.topic, place.partition) for place in begin}
        heard = time.monotonic()
        while (ahead or follow) and not stopping():
            message = consumer.poll(0.5)
            if message is not None and (message.error() is None or message.error().code() == KafkaError._PARTITION_EOF):
                heard = time.monotonic()
            elif not follow and time.monotonic() - heard > SILENCE_S:
                raise Retry(f"events cannot be read: Kafka has given nothing for {SILENCE_S:.0f} s")
            if message is None:
                if follow:
                    yield None
            elif message.error() is None:
                yield message
            elif message.error().code() == KafkaError._PARTITION_EOF:
                ahead.discard((message.topic(), message.partition()))
            else:
                log.debug("kafka.error", error=message.error().str())
    except KafkaException as error:
        raise Retry(f"events cannot be read: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _places(consumer: Consumer, names: Iterable[str], since: float | None) -> list[TopicPartition]:
    metadata = consumer.list_topics(timeout=10).topics
    missing = [name for name in names if name not in metadata]
    if missing:
        raise Retry(f"no topic {', '.join(missing)}: run `driftloop topics create`")
    places = [TopicPartition(name, number, 0) for name in names for number in metadata[name].partitions]
    if since is None:
        return places
    asked = [TopicPartition(place.topic, place.partition, round(since * 1000)) for place in places]
    return list(consumer.offsets_for_times(asked, timeout=10))


def _newest(consumer: Consumer, place: TopicPartition, count: int) -> TopicPartition:
    start, end = consumer.get_watermark_offsets(place, timeout=10)
    return TopicPartition(place.topic, place.partition, max(start, end - count))


def _logged(message: Message, topic: Topic) -> Logged | None:
    if message.value() is None:
        return None  # a tombstone
    try:
        envelope = decode(message.key(), message.value(), message.headers())
    except Reject as reject:
        log.warning("event.unreadable", topic=topic.name, offset=message.offset(), reason=str(reject))
        return None
    return Logged(topic, message.partition(), message.offset(), message.timestamp()[1] / 1000, envelope)
