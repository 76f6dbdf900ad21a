"""`driftloop run agent`: the Faust worker that watches `activity` and publishes drift."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from typing import Final, NoReturn

import faust
import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import Retry
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.agent import create_app
from streams.confirmed import Confirmed
from streams.current_model import CurrentModel
from streams.detectors import kind_of
from streams.kafka import client_config
from streams.watchdog import PartitionOffsets, Watchdog
from workers.profiles import Profiles
from workers.startup import begin, stop_on_signals, wait_for_topics

log = structlog.get_logger()

# EX_SOFTWARE of sysexits.h: an internal error, as a supervisor's log shows it.
STOPPED_EXIT_CODE: Final = 70
# A chunk is thousands of small objects that die with it. Looking for cycles every 700 of them, as Python does by
# default, costs a fifth of the agent's time and finds nothing; what does leave cycles behind is slow.
OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
# How long a start waits for the profile of the model in service; after that it goes on without, and takes it later.
PROFILE_WAIT_S: Final = 20.0


def run(settings: Settings) -> None:
    """Run until SIGTERM. Ends non-zero, state intact, if anything in the agent cannot be trusted."""
    health = begin("agent", settings)
    stopping = stop_on_signals()
    wait_for_topics(settings, health, stopping)
    if stopping.is_set():
        return
    topic = settings.topic(ACTIVITY)
    try:
        partitions = len(AdminClient(client_config(settings)).list_topics(topic, timeout=10).topics[topic].partitions)
    except (KafkaException, KeyError) as error:
        raise Retry(f"partitions of {topic}: {error}") from error
    settings.home.mkdir(parents=True, exist_ok=True)
    kind = kind_of(settings)
    profiles = Profiles(settings, kind).start() if isinstance(kind, Confirmed) else None
    current = CurrentModel(settings, profiles.follow if profiles else lambda _: None).start()
    if profiles is not None and current.caught_up.wait(PROFILE_WAIT_S) and current.version is not None:
        profiles.settled.wait(PROFILE_WAIT_S)  # so that a restart goes on with what was in force before
    app, watcher = create_app(settings, partitions, lambda: current.version, kind=kind, failed=end)
    health.doing = "watching"
    health.ready = lambda: watcher.ready
    health.samples = watcher.counters.samples

    def watch_turns() -> None:
        told = False
        while True:
            if stopping.is_set() and app.started and not told:  # asked before the worker could listen
                told = True
                os.kill(os.getpid(), signal.SIGTERM)
            if time.monotonic() - watcher.turned < 5 or app.rebalancing or not app.started:
                health.beat()
            time.sleep(1)

    threading.Thread(target=watch_turns, name="turns", daemon=True).start()
    Watchdog(PartitionOffsets(settings), lambda: watcher.owned, settings.stall_seconds, end).start()
    if stopping.is_set():
        return
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    log.info("agent.starting", partitions=partitions, detector=settings.detector)
    # The worker installs its own SIGTERM: stop fetching, commit, leave the group.
    faust.Worker(
        app, override_logging=False, redirect_stdouts=False, quiet=True, loglevel="WARN"
    ).execute_from_commandline()


def end(error: BaseException) -> NoReturn:
    """End the process at once: what is durable is right, and what is not is done again by the next one."""
    log.critical("agent.stopped", error=str(error) or repr(error), exc_info=error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED_EXIT_CODE)
