"""What is wrong with a topic, told with the command that mends it."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from schemas.errors import Retry, UserError
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_STATE, CURRENT_MODEL, DRIFT, TOPICS, dead_letters
from streams.topics import config_problems, failure, partition_problems, wanted_partitions

SETTINGS = Settings(_env_file=None, kafka_bootstrap="k:9092", namespace="a.")
AS_DESIGNED = {SETTINGS.topic(topic): topic.partitions for topic in TOPICS}


def problems(topic, **partitions):
    existing = AS_DESIGNED | {f"a.{name.replace('_', '.')}": count for name, count in partitions.items()}
    return list(partition_problems(SETTINGS, topic, existing))


def test_topics_as_designed_have_no_problem():
    """A check that always finds something is not read."""
    for topic in TOPICS:
        assert problems(topic) == []
        assert list(config_problems(SETTINGS, topic, topic.config)) == []


def test_too_few_partitions_are_told_with_the_command_that_adds_them():
    """Partitions bound how many agents can share the work."""
    (problem,) = problems(ACTIVITY, activity=1)
    assert problem.startswith("a.activity: 1 partition, should have 4;")
    assert "kafka-topics.sh --bootstrap-server k:9092 --alter --topic a.activity --partitions 4" in problem


def test_more_partitions_are_fine_where_readings_arrive_and_nowhere_else():
    """`activity` is what scales; an event topic with two partitions has no order any more."""
    assert problems(ACTIVITY, activity=16) == []
    (problem,) = problems(DRIFT, drift=2)
    assert "a.drift: 2 partitions, should have 1" in problem
    assert "cannot be taken away" in problem


@pytest.mark.parametrize("follower", [AGENT_STATE, dead_letters(ACTIVITY)])
def test_state_and_dead_letters_follow_the_readings_partitions(follower):
    """The agent's state moves with its partition: with fewer in the changelog the agent refuses to start."""
    assert wanted_partitions(SETTINGS, follower, {"a.activity": 16}) == 16
    (problem,) = problems(follower, activity=16)
    assert "should have 16" in problem


def test_a_wrong_cleanup_policy_is_told_with_the_command_that_mends_it():
    """A `current-model` that is deleted by age is a fleet without a model."""
    (problem,) = config_problems(SETTINGS, CURRENT_MODEL, {"cleanup.policy": "delete"})
    assert "cleanup.policy is delete, should be compact" in problem
    assert "--entity-name a.current-model --add-config cleanup.policy=compact" in problem


def test_a_topic_that_takes_less_than_a_dead_letter_needs_is_told():
    """The agent stops where a dead letter does not fit; better to know before."""
    topic = dead_letters(ACTIVITY)
    (problem,) = config_problems(SETTINGS, topic, topic.config | {"max.message.bytes": "1048588"})
    assert f"at least {topic.max_message_bytes}" in problem


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (KafkaError.INVALID_REPLICATION_FACTOR, UserError, "DRIFTLOOP_TOPIC_REPLICATION"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, UserError, "grant"),
        (KafkaError.POLICY_VIOLATION, UserError, "refuses"),
        (KafkaError.REQUEST_TIMED_OUT, Retry, "a.drift"),
        (KafkaError.NOT_CONTROLLER, Retry, "a.drift"),
        (KafkaError._TRANSPORT, Retry, "a.drift"),
    ],
)
def test_what_waiting_cures_is_a_retry_and_what_a_person_cures_says_how(code, kind, told):
    """A supervisor repeats the one and must not repeat the other."""
    answer = failure(SETTINGS, "a.drift", KafkaError(code))
    assert type(answer) is kind
    assert told in str(answer)
