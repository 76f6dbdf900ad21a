"""Every metric of every process: name, kind, unit, help, labels. `/metrics`, the README's list and the boards' tests
are made from it.

The `kafka_*` names and labels are danielqsj/kafka_exporter's, unchanged, so that boards made for it work as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. process: whose `/metrics` has it."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    process: Literal["agent", "monitor"] = "monitor"


Samples = Mapping[Metric, Mapping[tuple[str, ...], float]]
"""Metric → label values in the order of its labels → value. What is not known has no sample."""

_PARTITION: Final = ("topic", "partition")
_GROUP: Final = ("consumergroup", "topic")
_GROUP_PARTITION: Final = ("consumergroup", "topic", "partition")

# kafka_exporter's
BROKERS: Final = Metric("kafka_brokers", "gauge", "brokers", "Brokers in the cluster.")
BROKER_INFO: Final = Metric("kafka_broker_info", "gauge", "1", "A broker and its address.", ("id", "address"))
TOPIC_PARTITIONS: Final = Metric("kafka_topic_partitions", "gauge", "partitions", "Partitions of a topic.", ("topic",))
TOPIC_END: Final = Metric(
    "kafka_topic_partition_current_offset", "gauge", "offset", "End offset of a partition.", _PARTITION
)
TOPIC_START: Final = Metric(
    "kafka_topic_partition_oldest_offset", "gauge", "offset", "First offset that a partition still has.", _PARTITION
)
TOPIC_LEADER: Final = Metric(
    "kafka_topic_partition_leader", "gauge", "broker", "Broker that leads a partition.", _PARTITION
)
TOPIC_LEADER_PREFERRED: Final = Metric(
    "kafka_topic_partition_leader_is_preferred", "gauge", "0 or 1", "Whether its first replica leads it.", _PARTITION
)
TOPIC_REPLICAS: Final = Metric(
    "kafka_topic_partition_replicas", "gauge", "replicas", "Replicas of a partition.", _PARTITION
)
TOPIC_IN_SYNC: Final = Metric(
    "kafka_topic_partition_in_sync_replica", "gauge", "replicas", "Replicas in sync of a partition.", _PARTITION
)
TOPIC_UNDER_REPLICATED: Final = Metric(
    "kafka_topic_partition_under_replicated_partition", "gauge", "0 or 1", "Whether replicas are missing.", _PARTITION
)
GROUP_OFFSET: Final = Metric(
    "kafka_consumergroup_current_offset",
    "gauge",
    "offset",
    "Committed offset; no sample before a first commit.",
    _GROUP_PARTITION,
)
GROUP_OFFSET_SUM: Final = Metric(
    "kafka_consumergroup_current_offset_sum", "gauge", "offset", "Committed offsets of a topic, added up.", _GROUP
)
GROUP_LAG: Final = Metric(
    "kafka_consumergroup_lag",
    "gauge",
    "records",
    "End offset minus committed offset; no sample before a first commit.",
    _GROUP_PARTITION,
)
GROUP_LAG_SUM: Final = Metric("kafka_consumergroup_lag_sum", "gauge", "records", "Lags of a topic, added up.", _GROUP)
GROUP_MEMBERS: Final = Metric(
    "kafka_consumergroup_members", "gauge", "members", "Members of a consumer group.", ("consumergroup",)
)

# ours, of lag
BROKER_UP: Final = Metric("driftloop_broker_up", "gauge", "0 or 1", "Whether the last look at Kafka succeeded.")
LAG_SECONDS: Final = Metric(
    "driftloop_consumergroup_lag_seconds", "gauge", "seconds", "Age of the next record to be read.", _GROUP_PARTITION
)
BACKLOG: Final = Metric(
    "driftloop_consumergroup_backlog", "gauge", "records", "Records before a group without a commit.", _GROUP_PARTITION
)
VERDICT: Final = Metric(
    "driftloop_consumergroup_verdict",
    "gauge",
    "0 or 1",
    "1 for the verdict in force: ok, warn, stall, stop, rewind, unknown.",
    (*_GROUP_PARTITION, "verdict"),
)
EXPIRED: Final = Metric(
    "driftloop_consumergroup_expired",
    "gauge",
    "records",
    "Records past their retention that a group has not read.",
    _GROUP_PARTITION,
)
LOOK_SECONDS: Final = Metric("driftloop_monitor_look_seconds", "gauge", "seconds", "How long the last look took.")

# ours, of the loop
PROCESS_UP: Final = Metric(
    "driftloop_process_up", "gauge", "0 or 1", "Whether a process answers and its loop turns.", ("process",)
)
PROCESS_READY: Final = Metric(
    "driftloop_process_ready", "gauge", "0 or 1", "Whether a process can do its work.", ("process",)
)
DRIFTS: Final = Metric(
    "driftloop_drifts_total", "counter", "events", "Drifts on the topic.", ("feature", "statistic", "severity")
)
FAULTS: Final = Metric("driftloop_quality_faults_total", "counter", "events", "Sensor faults begun.", ("fault",))
DECISIONS: Final = Metric(
    "driftloop_decisions_total", "counter", "events", "Decisions, above all not to.", ("about", "outcome", "reason")
)
REGISTERED: Final = Metric("driftloop_models_registered_total", "counter", "events", "Model versions registered.")
DEPLOYMENTS: Final = Metric(
    "driftloop_deployments_total", "counter", "events", "Versions put in service.", ("target", "reason")
)
TRAINING_SECONDS: Final = Metric(
    "driftloop_training_seconds", "gauge", "seconds", "Fitting time of each candidate, last training.", ("candidate",)
)
CANDIDATE_SCORE: Final = Metric(
    "driftloop_candidate_score", "gauge", "macro F1", "Held-out score, last training.", ("candidate", "on")
)
CHAMPION: Final = Metric("driftloop_champion_version", "gauge", "version", "Version that serves.", ("model",))
CHAMPION_SINCE: Final = Metric(
    "driftloop_champion_timestamp_seconds", "gauge", "seconds", "When it began to serve, since the epoch.", ("model",)
)
DRIFT_TO_DEPLOYED: Final = Metric(
    "driftloop_drift_to_deployed_seconds", "gauge", "seconds", "From the drift event to its deployment, last one."
)
UNANSWERED: Final = Metric(
    "driftloop_unanswered_drift_seconds",
    "gauge",
    "seconds",
    "Age of the oldest drift event to which neither a model nor a decision has answered; 0: none.",
)
DEAD_LETTERS: Final = Metric(
    "driftloop_dead_letters_total", "counter", "records", "Dead letters that the monitor has seen.", ("topic", "class")
)

# of the agent
MESSAGES: Final = Metric("driftloop_messages_total", "counter", "records", "Records taken in.", (), "agent")
READINGS: Final = Metric("driftloop_readings_total", "counter", "readings", "Readings accepted.", (), "agent")
REJECTED: Final = Metric("driftloop_rejected_total", "counter", "records", "Records rejected.", ("class",), "agent")
DUPLICATES: Final = Metric("driftloop_duplicates_total", "counter", "readings", "Duplicates dropped.", (), "agent")
WINDOWS: Final = Metric("driftloop_windows_total", "counter", "windows", "Windows judged.", (), "agent")

METRICS: Final = tuple(each for each in globals().copy().values() if isinstance(each, Metric))
