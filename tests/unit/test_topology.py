"""The map of topics keeps what the contracts promise."""

from schemas.events import EVENT_TYPES
from schemas.topology import (
    ACTIVITY,
    AGENT_GROUP,
    AGENT_STATE,
    DEAD_LETTER_TOPICS,
    DEPLOY_GROUP,
    EVENT_TOPICS,
    RETRAIN_GROUP,
    TOPICS,
)

DAY_MS = 86_400_000


def test_topics_are_named_keyed_split_and_kept_as_promised():
    """Other people's programs subscribe to these names and rely on what is still there."""
    public = {topic.name: topic for topic in TOPICS if topic is not AGENT_STATE and topic not in DEAD_LETTER_TOPICS}
    assert {name: (t.key, t.partitions, t.cleanup, t.retention_ms) for name, t in public.items()} == {
        "activity": ("device", 4, "delete", None),
        "drift": ("model", 1, "delete", 30 * DAY_MS),
        "decisions": ("model", 1, "delete", 30 * DAY_MS),
        "model-registered": ("model", 1, "delete", -1),
        "deployed": ("model", 1, "delete", -1),
        "current-model": ("model", 1, "compact", None),
        "device-statistics": ("device", 1, "delete", DAY_MS // 4),
        "dlq-replays": ("letter", 1, "compact", None),
    }


def test_topics_carry_what_is_promised():
    """A consumer subscribes by topic and expects no other event there."""
    assert {topic.name: [cls.__name__ for cls in topic.carries] for topic in TOPICS if topic.carries} == {
        "activity": ["Reading", "ReadingBatch"],
        "drift": ["DriftDetected", "QualityDegraded", "RetrainRequested"],
        "decisions": ["DecisionMade"],
        "model-registered": ["ModelRegistered", "SwitchRequested"],
        "deployed": ["ModelDeployed"],
        "current-model": ["ModelDeployed"],
        "device-statistics": ["WindowStatistics"],
    }


def test_consumer_groups_are_named_as_promised():
    """Dashboards of lag and access rights go by group."""
    assert (AGENT_GROUP, RETRAIN_GROUP, DEPLOY_GROUP) == ("driftloop-agent", "driftloop-retrain", "driftloop-deploy")


def test_an_event_topic_carries_only_known_events_and_every_event_has_exactly_one():
    """An event of no topic is never sent; one of two topics would be acted on twice."""
    carried = [cls for topic in EVENT_TOPICS for cls in topic.carries]
    assert sorted(carried, key=str) == sorted(EVENT_TYPES.values(), key=str)


def test_every_event_names_its_model():
    """It is the Kafka key, so that a model's events stay in order."""
    assert [name for name, cls in EVENT_TYPES.items() if "model" not in cls.__struct_fields__] == []


def test_every_type_of_event_ends_in_its_version():
    """That is how a consumer tells what it cannot read yet."""
    assert [name for name in EVENT_TYPES if not name.startswith("driftloop.") or not name.endswith(".v1")] == []


def test_a_dead_letter_topic_has_the_partitions_of_its_source():
    """A dead letter goes to the partition it came from, so that a device's stay in order and a replay goes back."""
    by_name = {topic.name: topic for topic in TOPICS}
    for dead in DEAD_LETTER_TOPICS:
        source = by_name[dead.name.removesuffix(".dlq")]
        assert dead.name == f"{source.name}.dlq"
        assert dead.partitions == source.partitions
        assert dead.key == "as received"
        assert dead.written_by == source.read_by[:1]


def test_every_topic_that_a_worker_consumes_has_dead_letters():
    """Otherwise a record that can never work has nowhere to go, and the worker stands still."""
    assert [topic.name for topic in DEAD_LETTER_TOPICS] == ["activity.dlq", "drift.dlq", "model-registered.dlq"]


def test_whatever_the_broker_takes_fits_into_the_dead_letters_with_its_headers():
    """An oversize reading that cannot be dead-lettered would stop the agent for good."""
    (dead,) = (topic for topic in DEAD_LETTER_TOPICS if topic.name == "activity.dlq")
    assert dead.max_message_bytes >= ACTIVITY.max_message_bytes + 16 * 1024


def test_the_agent_s_state_moves_with_its_partition():
    """Whoever owns a partition of readings recovers exactly that partition's devices."""
    assert AGENT_STATE.partitions == ACTIVITY.partitions
    assert AGENT_STATE.cleanup == "compact"


def test_a_topic_s_name_says_nothing_twice_and_mixes_no_dots_and_underscores():
    """Kafka's metrics turn both into underscores, and two topics become one."""
    names = [topic.name for topic in TOPICS]
    assert len({name.replace(".", "_") for name in names}) == len(names)
    assert [name for name in names if "_" in name] == []


def test_a_topic_s_settings_are_in_kafka_s_words():
    """The broker ignores what it does not know."""
    by_name = {topic.name: topic.config for topic in TOPICS}
    assert by_name["activity"] == {"cleanup.policy": "delete", "max.message.bytes": "33554432"}
    assert by_name["deployed"] == {"cleanup.policy": "delete", "retention.ms": "-1"}
    assert by_name["current-model"] == {"cleanup.policy": "compact"}
