"""How our own clients talk to Kafka: one place for addresses, security and the promises of a producer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import Retry, UserError
from schemas.settings import Settings

log = structlog.get_logger()


def client_config(settings: Settings, **more: Any) -> dict[str, Any]:
    """librdkafka configuration for any client. Raises UserError where no Kafka is known."""
    if settings.kafka_bootstrap is None:
        raise UserError(
            "no Kafka is known: `driftloop up` starts one here, or set DRIFTLOOP_KAFKA_BOOTSTRAP=host:port to your own"
        )
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": settings.kafka_security_protocol,
        # Connection attempts are told by our own log lines; librdkafka repeats them many times a second.
        "log_level": 2,
        "reconnect.backoff.max.ms": 2_000,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        config |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username or "",
            "sasl.password": password.get_secret_value() if password else "",
        }
    if settings.kafka_ssl_ca is not None:
        config["ssl.ca.location"] = str(settings.kafka_ssl_ca)
    return config | more


def producer_config(settings: Settings, **more: Any) -> dict[str, Any]:
    """A producer that loses and duplicates nothing by itself: idempotent, acknowledged by all replicas in sync."""
    return client_config(settings, **{"enable.idempotence": True, "acks": "all", "linger.ms": 5} | more)


def reader_config(settings: Settings, **more: Any) -> dict[str, Any]:
    """A consumer that is assigned by hand, joins no group's balance, commits nothing and sees committed records."""
    return client_config(
        settings,
        **{
            "group.id": f"{settings.namespace}driftloop-reader",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
        }
        | more,
    )


def is_transient(error: KafkaError) -> bool:
    """Whether the same call may work later: the broker is away, not wrong."""
    return bool(error.retriable()) or error.code() in {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }


def backoff(first: float = 0.5, most: float = 5.0) -> Iterator[float]:
    """Seconds to wait before each next try."""
    wait = first
    while True:
        yield wait
        wait = min(most, wait * 1.6)


def wait_for_broker(settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> None:
    """Return once the broker answers; say every few seconds that it does not. Returns early if `stopping`."""
    admin = AdminClient(client_config(settings, **{"socket.connection.setup.timeout.ms": 3000}))
    for wait in backoff():
        if stopping():
            return
        try:
            admin.list_topics(timeout=3)
        except KafkaException as error:
            if not is_transient(error.args[0]):
                raise Retry(f"Kafka at {settings.kafka_bootstrap} refuses us: {error.args[0].str()}") from error
            log.warning("kafka.waiting", bootstrap=settings.kafka_bootstrap, error=error.args[0].str())
            time.sleep(wait)
        else:
            return
