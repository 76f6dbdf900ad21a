"""What the chunk transport leans on in Faust and aiokafka is still there. What it fetches: tests/integration."""

from __future__ import annotations

import importlib
import inspect
import re
from types import SimpleNamespace

import aiokafka.consumer.consumer as aiokafka_consumer
import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.structs import TopicPartition

from streams.records import Record, chunk_of
from streams.transport import ATTRIBUTES, PRIVATE, _leave_out


@pytest.mark.parametrize(("where", "name"), PRIVATE)
def test_what_the_transport_leans_on_is_there(where, name):
    """Private parts move without notice; an upgrade of Faust or aiokafka has to fail here, not at night."""
    assert hasattr(owner_of(where), name)


@pytest.mark.parametrize(("where", "name"), ATTRIBUTES)
def test_the_attributes_that_the_transport_leans_on_are_set(where, name):
    """One that is only written to, under its old name, would change nothing, and nobody would see it."""
    assert re.search(rf"\bself\.{name}\b", inspect.getsource(owner_of(where)))


def owner_of(where):
    module, _, attribute = where.rpartition(".")
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


def test_the_parts_that_are_replaced_take_what_they_took():
    """A method that is overridden with other arguments than the library calls it with fails only when it is called."""
    from faust.tables.base import Collection
    from faust.transport.consumer import Consumer
    from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

    for method, parameters in (
        (Consumer._drain_messages, ["self", "fetcher"]),
        (Consumer._wait_next_records, ["self", "timeout"]),
        (Consumer._commit, ["self", "offsets"]),
        (Consumer.verify_event_path, ["self", "now", "tp"]),
        (AIOKafkaConsumerThread._create_worker_consumer, ["self", "transport"]),
        (Fetcher._get_actions_per_node, ["self", "assignment"]),
        (Collection.apply_changelog_batch, ["self", "batch"]),
    ):
        assert list(inspect.signature(method).parameters) == parameters
    asked = inspect.getsource(Fetcher._get_actions_per_node)
    assert asked.count("assignment.") == asked.count("assignment.tps") + asked.count("assignment.state_value")
    assert "self._fetcher = Fetcher(" in inspect.getsource(aiokafka_consumer)


def test_aiokafka_fetches_the_tables_and_leaves_the_readings_alone(monkeypatch):
    """What both fetched would cost twice, and what aiokafka brought would be thrown away."""
    monkeypatch.setattr(aiokafka_consumer, "Fetcher", Fetcher)
    asked = []

    class Stock:
        def _get_actions_per_node(self, assignment):
            asked.extend(assignment.tps)

    monkeypatch.setattr("aiokafka.consumer.fetcher.Fetcher", Stock)
    _leave_out("activity")
    table = TopicPartition("devices-changelog", 0)
    places = SimpleNamespace(tps=[TopicPartition("activity", 0), table], state_value=None)
    aiokafka_consumer.Fetcher()._get_actions_per_node(places)
    assert asked == [table]


def test_the_part_of_a_chunk_from_an_offset_on():
    """What was processed before a rebalance is not processed again."""
    whole = chunk_of([Record(40 + number, None, b"k", value) for number, value in enumerate([b"a", b"b", b"c"])])
    part = whole.since(42)
    assert (part.start, part.end, part.offsets, part.values, len(part)) == (42, 43, [42], [b"c"], 1)
