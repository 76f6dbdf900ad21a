"""What every process does before its work: logs, /live and /ready, SIGTERM, and waiting for Kafka and its topics."""

from __future__ import annotations

import signal
import threading
import time

import structlog

from schemas.errors import Retry
from schemas.settings import Settings
from streams import topics
from streams.kafka import wait_for_broker
from workers.health import Health
from workers.logs import configure_logging

log = structlog.get_logger()


def begin(name: str, settings: Settings) -> Health:
    """Logs and health of a process."""
    configure_logging(settings)
    structlog.contextvars.bind_contextvars(process=name)
    health = Health(name)
    health.serve(settings.health_port, settings.health_host)
    return health


def stop_on_signals() -> threading.Event:
    """Set on SIGTERM or SIGINT; a second signal ends the process at once."""
    stopping = threading.Event()

    def note(number: int, _: object) -> None:
        if stopping.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopping.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return stopping


def wait_for_topics(settings: Settings, health: Health, stopping: threading.Event) -> None:
    """Return once the broker is there and its topics are as they should be; say what is missing meanwhile."""
    said: list[str] = []
    health.doing = "waiting for Kafka and its topics"
    while not stopping.is_set():
        health.beat()
        wait_for_broker(settings, stopping=lambda: _beat(health, stopping))
        if stopping.is_set():
            return
        try:
            problems = topics.check(settings, stopping=lambda: _beat(health, stopping))
        except Retry as error:  # the broker went away between two questions
            problems = [str(error)]
        if stopping.is_set() or not problems:
            return
        if problems != said:
            for problem in problems:
                log.warning("topics.waiting", problem=problem)
            said = problems
        stopping.wait(1)


def _beat(health: Health, stopping: threading.Event) -> bool:
    health.beat()
    return stopping.is_set()


def now() -> float:
    """Seconds since the epoch; the one clock of the processes."""
    return time.time()
