"""The map: every topic, what it carries, who writes and who reads it. Everything else about topics is derived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from schemas.activity import Reading, ReadingBatch
from schemas.events import (
    DecisionMade,
    DriftDetected,
    ModelDeployed,
    ModelRegistered,
    QualityDegraded,
    RetrainRequested,
    SwitchRequested,
    WindowStatistics,
)

_HOUR_MS: Final = 3600 * 1000
_DAY_MS: Final = 24 * _HOUR_MS
# The broker takes what is far too big, so that the agent can dead-letter it with its reason; raw bytes and the dead
# letter's headers then have to fit into the dead-letter topic.
ACCEPTED_BYTES: Final = 32 * 1024 * 1024
DEAD_LETTER_BYTES: Final = ACCEPTED_BYTES + 64 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. key: what its records are keyed by. retention_ms: -1 keeps for ever; None is the broker's default.

    more: further settings in Kafka's words.
    """

    name: str
    key: Literal["device", "model", "letter", "as received"]
    carries: tuple[type, ...]
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    partitions: int = 1
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int | None = None
    max_message_bytes: int | None = None
    more: tuple[tuple[str, str], ...] = ()

    @property
    def config(self) -> dict[str, str]:
        """The topic's settings in Kafka's words."""
        config: dict[str, str] = {"cleanup.policy": self.cleanup, **dict(self.more)}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        if self.max_message_bytes is not None:
            config["max.message.bytes"] = str(self.max_message_bytes)
        return config


AGENT_GROUP: Final = "driftloop-agent"
RETRAIN_GROUP: Final = "driftloop-retrain"
DEPLOY_GROUP: Final = "driftloop-deploy"

ACTIVITY: Final = Topic(
    "activity",
    "device",
    (Reading, ReadingBatch),
    ("sensors",),
    ("agent", "retrain"),
    4,
    max_message_bytes=ACCEPTED_BYTES,
)
DRIFT: Final = Topic(
    "drift",
    "model",
    (DriftDetected, QualityDegraded, RetrainRequested),
    ("agent", "operators"),
    ("retrain",),
    retention_ms=30 * _DAY_MS,
)
DECISIONS: Final = Topic(
    "decisions", "model", (DecisionMade,), ("retrain", "deploy"), ("monitor",), retention_ms=30 * _DAY_MS
)
# A hand on the wheel stands in one order with what is registered.
MODEL_REGISTERED: Final = Topic(
    "model-registered",
    "model",
    (ModelRegistered, SwitchRequested),
    ("retrain", "operators"),
    ("deploy",),
    retention_ms=-1,
)
DEPLOYED: Final = Topic("deployed", "model", (ModelDeployed,), ("deploy",), ("monitor", "retrain"), retention_ms=-1)
CURRENT_MODEL: Final = Topic(
    "current-model", "model", (ModelDeployed,), ("deploy",), ("router", "agent", "retrain"), cleanup="compact"
)
# Of a bounded number of devices, for people to look at; nothing is decided by it.
DEVICE_STATISTICS: Final = Topic(
    "device-statistics", "device", (WindowStatistics,), ("agent",), ("monitor",), retention_ms=6 * _HOUR_MS
)
# Which dead letters were sent again, so that none is sent twice.
REPLAYS: Final = Topic("dlq-replays", "letter", (), ("operators",), ("operators",), cleanup="compact")
# Faust names a table's changelog <app id>-<table>-changelog.
DEVICES_TABLE: Final = "devices"
AGENT_STATE: Final = Topic(
    f"{AGENT_GROUP}-{DEVICES_TABLE}-changelog",
    "device",
    (),
    ("agent",),
    ("agent",),
    ACTIVITY.partitions,
    cleanup="compact",
    # Small segments, cleaned early: a start reads all that is there. But not at once: an agent that was stopped may
    # have written an older state behind a newer one, and of two the furthest counts, as long as both are there.
    more=(
        ("segment.bytes", str(32 * 1024 * 1024)),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("min.compaction.lag.ms", str(600_000)),
    ),
)


def dead_letters(topic: Topic) -> Topic:
    """The dead-letter topic of a consumed topic: raw bytes as received, partitions as its source.

    The first reader judges what it reads; others skip what it has rejected.
    """
    return Topic(
        f"{topic.name}.dlq",
        "as received",
        (),
        topic.read_by[:1],
        ("operators",),
        topic.partitions,
        max_message_bytes=DEAD_LETTER_BYTES,
    )


EVENT_TOPICS: Final = (DRIFT, DECISIONS, MODEL_REGISTERED, DEPLOYED)
DEAD_LETTER_TOPICS: Final = tuple(map(dead_letters, (ACTIVITY, DRIFT, MODEL_REGISTERED)))
TOPICS: Final = (
    ACTIVITY,
    *EVENT_TOPICS,
    CURRENT_MODEL,
    DEVICE_STATISTICS,
    *DEAD_LETTER_TOPICS,
    REPLAYS,
    AGENT_STATE,
)
