"""Metrics: one table, kafka_exporter's names, and no sample for what is not known."""

import re

from prometheus_client.parser import text_string_to_metric_families

from schemas import metrics as m
from schemas.metrics import METRICS
from streams.counters import count, of_agent
from streams.gate import Record, Rejection
from streams.lag import GroupSeen, LagTracker, Look, PartitionSeen
from streams.processor import Outcome
from workers.exposition import exposition
from workers.loop_metrics import samples
from workers.seen import Kafka, Seen


def names(text):
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def seen(committed):
    look = Look(
        ts=0,
        groups={"g": GroupSeen("empty", 0)},
        committed={("g", "t", 0): committed},
        starts={("t", 0): 2},
        ends={("t", 0): 10},
        partitions={("t", 0): PartitionSeen(1, (1, 2), (1,))},
        brokers={1: "a:1"},
    )
    found = Seen()
    found.kafka = Kafka(look, LagTracker().take(look, {}), {}, 0.1, None, 0)
    return found


def test_names_follow_prometheus_rules():
    """Counters end in _total, and a name says its unit in base units."""
    assert len({each.name for each in METRICS}) == len(METRICS) > 30
    for each in METRICS:
        assert re.fullmatch("(driftloop|kafka)_[a-z_]+", each.name)
        assert (each.kind == "counter") == each.name.endswith("_total")
        assert each.unit
        assert each.help.endswith(".")


def test_a_board_made_for_kafka_exporter_finds_its_metrics():
    """Grafana's board 7589 asks for some of these, with these labels; other boards for others."""
    found = names(exposition(samples(seen(4))))
    lag = found["kafka_consumergroup_lag"].samples[0]
    assert lag.labels == {"consumergroup": "g", "topic": "t", "partition": "0"}
    assert lag.value == 6
    of_partitions = "current_offset oldest_offset in_sync_replica leader leader_is_preferred replicas"
    of_groups = "current_offset current_offset_sum lag lag_sum members"
    wanted = {f"kafka_topic_partition_{name}" for name in of_partitions.split()}
    wanted |= {f"kafka_consumergroup_{name}" for name in of_groups.split()}
    assert wanted | {"kafka_brokers", "kafka_broker_info", "kafka_topic_partitions"} <= set(found)
    assert found["kafka_broker_info"].samples[0].labels == {"id": "1", "address": "a:1"}
    assert found["kafka_topic_partition_leader_is_preferred"].samples[0].value == 1
    assert found["kafka_topic_partition_under_replicated_partition"].samples[0].value == 1


def test_a_group_without_a_commit_has_no_lag_sample():
    """kafka_exporter's -1 has made many an alert fire."""
    found = names(exposition(samples(seen(None))))
    assert "kafka_consumergroup_lag" not in found
    assert found["driftloop_consumergroup_backlog"].samples[0].value == 8


def test_while_kafka_is_away_nothing_is_told_but_that():
    """Old figures would look like good ones."""
    away = Seen()
    away.kafka.trouble = "no broker"
    found = names(exposition(samples(away)))
    assert found["driftloop_broker_up"].samples[0].value == 0
    assert not any(name.startswith("kafka_") for name in found)


def test_the_agent_counts_what_a_run_has_led_to():
    """Readings in and rejected by class are what operators watch first."""
    counters = of_agent()
    record = Record(1, None, b"k", b"v", ())
    outcome = Outcome(rejections=[Rejection(record, "syntax", "not JSON")], readings=50, windows=2, duplicates=3)
    count(counters, [record, record], outcome)
    found = counters.samples()
    assert found[m.READINGS] == {(): 50}
    assert found[m.REJECTED] == {("syntax",): 1}
    assert "driftloop_readings" in names(exposition(found))
    assert "process_resident_memory_bytes" in names(exposition(found))
