"""What the agent sends is waited for; what was dropped on purpose is neither waited for nor a failure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from confluent_kafka import Producer

from schemas.errors import Stop
from schemas.settings import Settings
from streams.outbox import Outbox


@pytest.fixture
def outbox():
    """One whose Kafka is not there."""
    made = Outbox(Settings(_env_file=None, kafka_bootstrap="127.0.0.1:1"))
    yield made
    made.producer.purge()


def acknowledged(outbox: Outbox) -> None:
    async def wait() -> None:
        async with asyncio.timeout(10):
            await outbox.acknowledged()

    asyncio.run(wait())


def test_nothing_sent_is_acknowledged_at_once(outbox):
    """An idle agent commits by its timer."""
    acknowledged(outbox)


def test_what_kafka_does_not_take_is_not_acknowledged(outbox):
    """An offset that is committed before its drift event is a drift event lost."""
    outbox.send("drift", b"k", b"v")
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(outbox.acknowledged(), 0.5))


def test_what_is_sent_meanwhile_is_not_waited_for(outbox, monkeypatch):
    """A checkpoint beside a stream of dead letters would never end, and nothing be committed."""
    monkeypatch.setattr(outbox, "producer", SimpleNamespace(poll=lambda _: 1, purge=lambda: None))
    acknowledged(outbox)


def test_what_was_dropped_with_its_partitions_does_not_end_the_agent(outbox):
    """After a rebalance the next owner sends it: to stop for it would be a restart for nothing."""
    outbox.send("drift", b"k", b"v")
    outbox.forget()
    acknowledged(outbox)


def test_what_kafka_gives_up_ends_it(outbox):
    """The state may not go ahead of what was sent."""
    outbox.producer = Producer({"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 200, "log_level": 0})
    outbox.send("drift", b"k", b"v")
    outbox.producer.flush(5)
    with pytest.raises(Stop, match="not acknowledged"):
        acknowledged(outbox)


def test_a_full_queue_is_told_and_counts_nothing(outbox):
    """Whoever sends waits for what is under way, then sends the same again."""
    outbox.producer = Producer({"bootstrap.servers": "127.0.0.1:1", "queue.buffering.max.messages": 1, "log_level": 0})
    outbox.send("drift", b"k", b"v")
    with pytest.raises(BufferError):
        outbox.send("drift", b"k", b"w")
    assert outbox.batch.open == 1
