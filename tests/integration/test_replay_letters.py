"""Dead letters sent again on a real Kafka: where they came from, as they were, and never twice."""

import threading

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.errors import Retry, Stop
from schemas.topology import ACTIVITY, dead_letters
from streams import topics
from streams.deadletters import dead_letter_headers
from streams.gate import Record
from streams.letters import plan, read_letters
from streams.replay_letters import replay, replayed
from workers.dlq import letters, one


@pytest.fixture
def written(settings):
    """Five letters of partition 2, with a header of their own."""
    topics.create(settings)
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for offset in range(5):
        record = Record(offset, 1.0, b"phone-01", b"{%d" % offset, (("trace", b"abc"),))
        headers = dead_letter_headers(settings.topic(ACTIVITY), 2, record, "syntax", "not JSON")
        topic = settings.topic(dead_letters(ACTIVITY))
        producer.produce(topic, key=record.key, value=record.value, headers=headers, partition=2)
    producer.flush()
    return [each for each in read_letters(settings) if each is not None]


def arrived(settings):
    """(value, headers) on the partition that the letters came from, as a reader of committed records sees it."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap,
            "group.id": f"{settings.namespace}look",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(settings.topic(ACTIVITY), 2, 0)])
    found = []
    while (message := consumer.poll(20)) is not None and message.error() is None:
        found.append((message.value(), dict(message.headers() or ())))
    consumer.close()
    return found


def test_letters_go_back_as_they_were(settings, written):
    """Bytes, key and partition are the sender's; what we had added stays behind, but where they have been is told."""
    assert replay(settings, written, rate=1000) == 5
    found = arrived(settings)
    assert [value for value, _ in found] == [b"{%d" % number for number in range(5)]
    name = f"{settings.topic(dead_letters(ACTIVITY))}/2/0"
    assert found[0][1] == {"trace": b"abc", "dlq.replay-of": name.encode()}


def test_a_letter_is_never_sent_twice(settings, written):
    """Not by the next run, nor by one that has not seen the first one's receipts."""
    assert replay(settings, written[:3], rate=1000) == 3
    assert replay(settings, written, rate=1000) == 2
    assert len(arrived(settings)) == 5
    assert plan(written, replayed(settings), most=10).chosen == []


def test_two_replays_at_once_send_each_letter_once(settings, written):
    """Two people mend the same night's trouble: one is fenced, and what it had sent counts."""
    outcomes = []

    def run():
        try:
            outcomes.append(replay(settings, written, rate=20))
        except (Retry, Stop) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replay(settings, written, rate=1000)
    values = [value for value, _ in arrived(settings)]
    assert sorted(values) == [b"{%d" % number for number in range(5)]


def test_letters_are_found_by_topic_class_and_name(settings, written):
    """Who mends one thing must not touch another."""
    assert len(letters(settings, "activity", "syntax")) == 5
    assert letters(settings, "activity", "schema") == []
    assert letters(settings, "drift", None) == []
    assert one(settings, written[3].name).value == b"{3"
