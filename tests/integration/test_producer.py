"""Readings to a real Kafka: each one is on the topic or reported as not."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.activity import Reading, ReadingBatch
from schemas.errors import UserError
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams import topics
from streams.kafka import reader_config
from streams.producer import messages, produce
from streams.simulator import simulate


@pytest.fixture
def activity(settings):
    """Read all messages of the activity topic: (partition, key, value) in offset order of each partition."""
    topics.create(settings)

    def read():
        consumer = Consumer(reader_config(settings, **{"enable.partition.eof": False}))
        name, found = settings.topic(ACTIVITY), []
        try:
            ends = {}
            for partition in range(ACTIVITY.partitions):
                low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=10)
                ends[partition] = (low, high)
            consumer.assign([TopicPartition(name, partition, low) for partition, (low, _) in ends.items()])
            wanted = sum(high - low for low, high in ends.values())
            deadline = time.monotonic() + 30
            while len(found) < wanted and time.monotonic() < deadline:
                for message in consumer.consume(1000, timeout=1.0):
                    assert message.error() is None
                    found.append((message.partition(), message.key(), message.value()))
        finally:
            consumer.close()
        return found

    return read


@pytest.mark.parametrize("batch", [1, 64])
def test_every_reading_is_on_the_topic_once_and_a_device_in_order(settings, activity, batch):
    """The rest of the loop counts on a device's readings sharing a partition in event-time order."""
    recordings = simulate(5, 20, seed=1, start_ts=1.7e9)
    produced = produce(settings, recordings, batch=batch)
    assert produced.complete
    assert (produced.planned, produced.readings, produced.delivered, produced.failed) == (5000, 5000, 5000, 0)
    found = activity()
    assert produced.messages == len(found)
    assert sorted((key, value) for _, key, value in found) == sorted(messages(recordings, batch))
    shape = Reading if batch == 1 else ReadingBatch
    for recording in recordings:
        own = [(where, value) for where, key, value in found if key == recording.device.encode()]
        assert len({where for where, _ in own}) == 1
        seqs = [msgspec.json.decode(value, type=shape).seq for _, value in own]
        flat = seqs if batch == 1 else [seq for part in seqs for seq in part]
        assert flat == list(range(1000))


def test_a_limit_takes_the_first_readings_by_event_time(settings, activity):
    """`--limit 10` of a fleet is its first moments, not one phone's."""
    produced = produce(settings, simulate(4, 5, seed=1, start_ts=1.7e9), limit=10, batch=2)
    assert (produced.planned, produced.delivered) == (10, 10)
    sent = [msgspec.json.decode(value) for _, _, value in activity()]
    assert {batch["device"]: len([ts for other in sent if other["device"] == batch["device"] for ts in other["ts"]])
            for batch in sent} == {"phone-01": 3, "phone-02": 3, "phone-03": 2, "phone-04": 2}  # fmt: skip


def test_speed_is_kept_by_event_time(settings, activity):
    """Somebody watching a demo, and every delay in event time, relies on the pace."""
    began = time.monotonic()
    seen = []
    assert produce(settings, simulate(2, 4, seed=1, start_ts=1.7e9), speed=4.0, progress=seen.append).complete
    assert 0.9 < time.monotonic() - began < 5
    assert seen == sorted(seen)
    assert any(0 < count < 400 for count in seen)


def test_an_interrupt_stops_cleanly_and_tells_what_was_delivered(settings, activity):
    """Ctrl-C on a long run must not leave doubt about what the loop has seen; and the old handler comes back."""
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    produced = produce(settings, simulate(2, 600, seed=1, start_ts=1.7e9), speed=1.0)
    assert produced.interrupted
    assert not produced.complete
    assert 0 < produced.readings == produced.delivered < produced.planned
    assert len(activity()) == produced.delivered
    assert signal.getsignal(signal.SIGINT) == before


def test_a_broker_that_stays_away_ends_the_run_with_a_report(tmp_path):
    """Not a hang, not a stack trace, and nothing claimed as delivered."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        settings = Settings(_env_file=None, home=tmp_path, kafka_bootstrap=f"127.0.0.1:{reserved.getsockname()[1]}")
        produced = produce(settings, simulate(8, 200, seed=1, start_ts=1.7e9), delivery_timeout_s=1.5)
    assert produced.delivered == 0
    assert 0 < produced.failed == produced.readings < produced.planned
    assert not produced.interrupted
    (reason,) = produced.reasons
    assert "timed out" in reason


def test_a_message_that_the_broker_refuses_is_counted_and_the_rest_goes_on(settings, activity):
    """One bad message is no reason to lose an hour of good ones, and no reason to say that all went well."""
    sent = list(messages(simulate(1, 1, seed=1, start_ts=1.7e9)))
    too_big = replace(simulate(1, 1, seed=1, start_ts=1.7e9)[0], device="x" * 2_000_000)
    produced = produce(settings, [too_big, *simulate(1, 1, seed=1, start_ts=1.7e9)])
    assert not produced.complete
    assert produced.delivered == len(sent)
    assert (produced.readings, produced.failed) == (100, 50)
    assert len(activity()) == len(sent)


def test_a_missing_topic_is_told_at_once(settings):
    """Otherwise every message would wait for a topic that nobody makes."""
    with pytest.raises(UserError, match="driftloop topics create"):
        produce(settings, simulate(1, 1, seed=1, start_ts=1.7e9))
