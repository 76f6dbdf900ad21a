"""Is it alive? One question for every process, by address: `kafka://host:port` or a page that answers 200."""

from __future__ import annotations

import http.client
import socket
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit


def trouble(address: str, *, seconds: float = 3) -> str | None:
    """Why the address does not answer as a healthy one does, in one line; None where it does."""
    parts = urlsplit(address)
    if parts.scheme == "kafka":
        return _kafka_trouble(parts.netloc, seconds)
    if parts.scheme == "tcp":
        return None if any(_listens(server, seconds) for server in parts.netloc.split(",")) else "nobody listens"
    return _page_trouble(address, seconds)


def _page_trouble(url: str, seconds: float) -> str | None:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")
        answer = connection.getresponse()
        said = answer.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if answer.status == http.HTTPStatus.OK else f"{answer.status} {' '.join(said.split())}".strip()


def _kafka_trouble(bootstrap: str, seconds: float) -> str | None:
    if not any(_listens(server, seconds) for server in bootstrap.split(",")):
        return "nobody listens"  # cheaper than librdkafka's retries
    from confluent_kafka import KafkaException

    try:
        _admin(bootstrap).list_topics(timeout=seconds)
    except KafkaException as error:
        return str(error.args[0].str())
    return None


@lru_cache(maxsize=4)
def _admin(bootstrap: str) -> Any:
    """One client for each broker: making one costs three threads."""
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 1000})


def _listens(server: str, seconds: float) -> bool:
    host, _, port = server.strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True
