"""Topics made and checked from the topology: auto-creation is off everywhere, so nothing else makes one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, NewTopic, ResourceType

from schemas.errors import Retry, UserError
from schemas.settings import Settings
from schemas.topology import ACTIVITY, AGENT_STATE, TOPICS, Topic, dead_letters
from streams.kafka import client_config, is_transient, wait_for_broker

_TIMEOUT_S: Final = 10
# What a controller that moves answers to an admin client; librdkafka does not mark it as retriable.
_BUSY: Final = {KafkaError.NOT_CONTROLLER, KafkaError.NETWORK_EXCEPTION}
# Kafka's own table and the dead letters keep the partition of what they came from.
_SOURCE: Final = {AGENT_STATE.name: ACTIVITY.name} | {dead_letters(topic).name: topic.name for topic in TOPICS}


def create(settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> list[str]:
    """Names of the topics that were missing and are there now; what exists is left as it is.

    Two processes may do this at once. Waits for the broker until `stopping`. Raises UserError where the cluster will
    never take the request as it stands, Retry where it may later.
    """
    wait_for_broker(settings, stopping=stopping)
    admin = AdminClient(client_config(settings, log_level=0))
    existing = _partitions(_metadata(admin))
    missing = [topic for topic in TOPICS if settings.topic(topic) not in existing]
    if not missing:
        return []
    futures = admin.create_topics(
        [
            NewTopic(
                settings.topic(topic),
                num_partitions=wanted_partitions(settings, topic, existing),
                replication_factor=settings.topic_replication,
                config=topic.config,
            )
            for topic in missing
        ],
        operation_timeout=_TIMEOUT_S,
    )
    created = []
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was quicker
                raise failure(settings, name, error.args[0]) from error
        else:
            created.append(name)
    _wait_until_listed(settings, admin)
    return created


def check(settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> list[str]:
    """What is wrong with the topics, a line each with how to mend it; empty if they are as the topology says.

    More partitions than the topology's default are fine on `activity`, the one topic that scales, as long as its
    dead letters and the agent's state have as many.
    """
    wait_for_broker(settings, stopping=stopping)
    admin = AdminClient(client_config(settings, log_level=0))
    existing = _partitions(_metadata(admin))
    present = [topic for topic in TOPICS if settings.topic(topic) in existing]
    configs = _configs(settings, admin, present)
    problems = []
    for topic in TOPICS:
        name = settings.topic(topic)
        if name not in existing:
            problems.append(f"{name}: missing; run `driftloop topics create`")
            continue
        problems += partition_problems(settings, topic, existing)
        problems += config_problems(settings, topic, configs[name])
    return problems


def wanted_partitions(settings: Settings, topic: Topic, existing: dict[str, int]) -> int:
    """How many partitions a topic should have, given those that exist: as its source, or as the topology says."""
    source = f"{settings.namespace}{_SOURCE.get(topic.name, topic.name)}"
    return existing.get(source, topic.partitions) if source != settings.topic(topic) else topic.partitions


def partition_problems(settings: Settings, topic: Topic, existing: dict[str, int]) -> Iterator[str]:
    """What is wrong with an existing topic's partitions; existing: partitions of each topic by its full name."""
    name = settings.topic(topic)
    has, wanted = existing[name], wanted_partitions(settings, topic, existing)
    if has == wanted or (topic is ACTIVITY and has > wanted):
        return
    found = f"{name}: {has} {'partition' if has == 1 else 'partitions'}, should have {wanted}"
    if has < wanted:
        command = f"kafka-topics.sh --bootstrap-server {settings.kafka_bootstrap} --alter --topic {name}"
        yield f"{found}; stop the loop and run `{command} --partitions {wanted}`"
    else:
        yield f"{found}; partitions cannot be taken away: stop the loop, delete it and run `driftloop topics create`"


def config_problems(settings: Settings, topic: Topic, config: dict[str, str]) -> Iterator[str]:
    """What is wrong with an existing topic's settings, which are in Kafka's words."""
    name = settings.topic(topic)
    mend = (
        f"run `kafka-configs.sh --bootstrap-server {settings.kafka_bootstrap} --alter --entity-type topics "
        f"--entity-name {name} --add-config"
    )
    policy = config.get("cleanup.policy", "")
    if policy != topic.cleanup:
        yield f"{name}: cleanup.policy is {policy}, should be {topic.cleanup}; {mend} cleanup.policy={topic.cleanup}`"
    size = int(config.get("max.message.bytes", 0))
    if topic.max_message_bytes is not None and size < topic.max_message_bytes:
        yield (
            f"{name}: max.message.bytes is {size}, should be at least {topic.max_message_bytes}; "
            f"{mend} max.message.bytes={topic.max_message_bytes}`"
        )


def _metadata(admin: AdminClient) -> ClusterMetadata:
    try:
        return admin.list_topics(timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise Retry(f"Kafka does not list its topics: {error.args[0].str()}") from error


def _partitions(metadata: ClusterMetadata) -> dict[str, int]:
    return {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}


def _configs(settings: Settings, admin: AdminClient, topics: list[Topic]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, settings.topic(topic)) for topic in topics]
    if not resources:
        return {}
    configs = {}
    for resource, future in admin.describe_configs(resources, request_timeout=_TIMEOUT_S).items():
        try:
            configs[resource.name] = {name: entry.value for name, entry in future.result().items()}
        except KafkaException as error:
            raise failure(settings, resource.name, error.args[0]) from error
    return configs


def _wait_until_listed(settings: Settings, admin: AdminClient) -> None:
    """A created topic is in the brokers' metadata a moment later than in the controller's."""
    deadline = time.monotonic() + _TIMEOUT_S
    wanted = {settings.topic(topic) for topic in TOPICS}
    while not wanted <= _partitions(_metadata(admin)).keys():
        if time.monotonic() > deadline:
            raise Retry(f"Kafka at {settings.kafka_bootstrap} made topics but does not list them yet")
        time.sleep(0.1)


def failure(settings: Settings, name: str, error: KafkaError) -> Retry | UserError:
    """What the cluster's refusal means for us; name: the topic it is about."""
    code = error.code()
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return UserError(
            f"{name}: {error.str().rstrip('.')}; set DRIFTLOOP_TOPIC_REPLICATION to at most the number of brokers "
            f"(it is {settings.topic_replication})"
        )
    if code in {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}:
        return UserError(
            f"{name}: this user may not do that ({error.str()}); grant Create and DescribeConfigs on {name}, "
            "or have an administrator run `driftloop topics create`"
        )
    if is_transient(error) or code in _BUSY:
        return Retry(f"{name}: {error.str()}")
    return UserError(f"{name}: Kafka at {settings.kafka_bootstrap} refuses: {error.str()}; correct it and try again")
