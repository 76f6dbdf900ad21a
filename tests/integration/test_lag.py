"""Lag on a real Kafka, beside the figures of Kafka's own tool."""

import json
import os
import re
import subprocess
import sys
import threading

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.errors import Retry
from streams.lag import LagTracker
from streams.lag_collector import Collector, RecordTimes
from tests.integration.kafka_tool import kafkas_tool


@pytest.fixture
def topic(settings):
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    name = f"{settings.namespace}numbers"
    admin.create_topics([NewTopic(name, 3, 1)])[name].result()
    yield name
    admin.delete_topics([name])[name].result()


def fill(settings, topic, count, partition=0, **config):
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, **config})
    if "transactional.id" in config:
        producer.init_transactions()
        producer.begin_transaction()
    for number in range(count):
        producer.produce(topic, str(number), partition=partition)
    producer.flush()
    if "transactional.id" in config:
        producer.commit_transaction()


def commit(settings, group, topic, offsets):
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, *each) for each in offsets.items()], asynchronous=False)
    consumer.close()


def lags(settings, group, looks=1):
    collector, tracker, times = Collector(settings, f"^{group}$"), LagTracker(), RecordTimes(settings)
    for _ in range(looks):
        look = collector.look()
        found = tracker.take(look, times.of(look))
    times.close()
    return {(each.topic, each.partition): each for each in found if each.group == group}


def test_every_partition_agrees_with_kafkas_own_tool(settings, topic):
    """Whoever doubts our page compares it with that tool."""
    group = f"{settings.namespace}reader"
    for partition, count in ((0, 100), (1, 40), (2, 7)):
        fill(settings, topic, count, partition)
    commit(settings, group, topic, {0: 60, 1: 40})
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": group, "enable.auto.commit": False})
    consumer.subscribe([topic])
    assert consumer.poll(20) is not None  # a member now, and owner of the partition without a commit
    found = lags(settings, group)
    theirs = kafkas_tool(settings, group)
    consumer.close()
    assert {place: (each.committed, each.end, each.lag) for place, each in found.items()} == theirs
    assert found[topic, 2].backlog == 7


def test_under_load_kafkas_own_tool_tells_what_lies_between_two_looks_of_ours(settings, topic):
    """Offsets of every partition move while either looks; neither may tell one that was never there."""
    group, stop = f"{settings.namespace}busy", threading.Event()

    def printed():
        """What `driftloop lag --json` prints, by topic and partition."""
        command = [sys.executable, "-m", "workers.cli", "lag", "--json", "--group", f"^{re.escape(group)}$"]
        environment = os.environ | {"DRIFTLOOP_KAFKA_BOOTSTRAP": settings.kafka_bootstrap}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert told.returncode in (0, 1), told.stderr  # 1: something is behind
        return {(each["topic"], each["partition"]): each for each in json.loads(told.stdout)}

    def load():
        offset = 0
        while not stop.is_set():
            offset += 10
            for partition in range(3):
                fill(settings, topic, 20, partition)
            commit(settings, group, topic, dict.fromkeys(range(3), offset))

    for partition in range(3):
        fill(settings, topic, 1, partition)
    commit(settings, group, topic, dict.fromkeys(range(3), 0))
    worker = threading.Thread(target=load)
    worker.start()
    try:
        before, theirs, after = printed(), kafkas_tool(settings, group), printed()
    finally:
        stop.set()
        worker.join()
    assert before.keys() == theirs.keys() == after.keys() == {(topic, partition) for partition in range(3)}
    assert all(after[place]["committed"] > before[place]["committed"] for place in before)  # it was under load
    for place, (committed, end, lag) in theirs.items():
        assert before[place]["committed"] <= committed <= after[place]["committed"]
        assert before[place]["end"] <= end <= after[place]["end"]
        assert lag == end - committed


def test_a_group_without_members_is_still_measured(settings, topic):
    """The exporters that lose sight of it leave its owner in the dark."""
    group = f"{settings.namespace}gone"
    fill(settings, topic, 10)
    commit(settings, group, topic, {0: 4})
    found = lags(settings, group, looks=2)[topic, 0]
    assert (found.committed, found.lag, found.members, found.verdict) == (4, 6, 0, "stop")
    assert 0 <= found.seconds < 60
    assert kafkas_tool(settings, group)[topic, 0] == (4, 10, 6)


def test_the_marker_of_a_transaction_is_no_lag_to_worry_about(settings, topic):
    """Kafka counts it, and so do we; nobody can ever read it, so the verdict is good."""
    group = f"{settings.namespace}transactions"
    fill(settings, topic, 5, **{"transactional.id": group})
    commit(settings, group, topic, {0: 5})
    found = lags(settings, group, looks=2)[topic, 0]
    assert (found.lag, found.seconds, found.verdict) == (1, 0.0, "ok")


def test_lag_is_never_negative_while_a_consumer_runs(settings, topic):
    """Whoever reads ends before commits sees a consumer ahead of its topic (kafka_exporter #76, #169, #287)."""
    group, stop = f"{settings.namespace}fast", threading.Event()

    def load():
        consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": group})
        offset = 0
        while not stop.is_set():
            fill(settings, topic, 50)
            offset += 50
            consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
        consumer.close()

    worker = threading.Thread(target=load)
    worker.start()
    try:
        collector, tracker = Collector(settings, f"^{group}$"), LagTracker()
        found = [each for _ in range(60) for each in tracker.take(collector.look(), {}) if each.group == group]
    finally:
        stop.set()
        worker.join()
    known = [each.lag for each in found if each.committed is not None]
    assert len(known) > 20
    assert None not in known
    assert min(known) >= 0


def test_a_broker_that_is_away_is_a_retry_and_nothing_is_made_up(settings):
    """Unknown is not zero."""
    with pytest.raises(Retry):
        Collector(replace_bootstrap(settings)).look()


def replace_bootstrap(settings):
    return settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
