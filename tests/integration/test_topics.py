"""Topics on a real Kafka: made once, never changed, and what is wrong with them is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.errors import UserError
from schemas.topology import ACTIVITY, AGENT_STATE, CURRENT_MODEL, DRIFT, TOPICS, dead_letters
from streams import topics
from streams.kafka import client_config


@pytest.fixture
def made(settings):
    """Make topics by hand, as somebody else would."""
    admin = AdminClient(client_config(settings))

    def make(topic, partitions, **config):
        name = settings.topic(topic)
        admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)])[
            name
        ].result()

    return make


def test_topics_are_made_once_and_are_then_as_they_should_be(settings):
    """`driftloop topics create` is safe to repeat, in a script or by hand."""
    assert len(topics.check(settings)) == len(TOPICS)
    assert sorted(topics.create(settings)) == sorted(map(settings.topic, TOPICS))
    assert topics.check(settings) == []
    assert topics.create(settings) == []


def test_two_processes_may_make_topics_at_once(settings):
    """Every worker of a stack that starts may try; each topic is made by exactly one of them."""
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda _: topics.create(settings), range(4)))
    assert sorted(name for names in created for name in names) == sorted(map(settings.topic, TOPICS))
    assert topics.check(settings) == []


def test_what_exists_is_told_and_never_changed(settings, made):
    """A topic made by hand may hold somebody's readings."""
    made(DRIFT, 3)
    made(CURRENT_MODEL, 1, **{"cleanup.policy": "delete"})
    created = topics.create(settings)
    assert settings.topic(DRIFT) not in created
    problems = topics.check(settings)
    assert len(problems) == 2
    assert problems[0].startswith(f"{settings.topic(DRIFT)}: 3 partitions, should have 1")
    assert "cleanup.policy is delete, should be compact" in problems[1]
    assert topics.check(settings) == problems


def test_state_and_dead_letters_are_made_with_as_many_partitions_as_the_readings(settings, made):
    """Sixteen partitions for sixteen agents: the agent's changelog has to be partitioned alike."""
    made(ACTIVITY, 16, **{"max.message.bytes": str(ACTIVITY.max_message_bytes)})
    topics.create(settings)
    assert topics.check(settings) == []
    listed = AdminClient(client_config(settings)).list_topics(timeout=10).topics
    for follower in (AGENT_STATE, dead_letters(ACTIVITY)):
        assert len(listed[settings.topic(follower)].partitions) == 16


def test_more_replicas_than_brokers_is_told_with_the_setting(settings):
    """The setting that is right for a cluster is wrong for one machine."""
    with pytest.raises(UserError, match="DRIFTLOOP_TOPIC_REPLICATION"):
        topics.create(settings.model_copy(update={"topic_replication": 3}))
