"""`driftloop doctor`: is everything there that the loop needs, and if not, how is it mended."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.errors import Retry, UserError
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams import topics
from streams.kafka import client_config
from workers import doctor_target as targets
from workers.doctor_target import Finding

_FREE_BYTES: Final = 2 * 1024**3
_SKEW_S: Final = 5.0


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which one depends on the other."""
    findings = [_broker(settings)]
    if findings[0].good:
        findings += [*_topics(settings), _clock(settings)]
    return [*findings, _mlflow(settings), *targets.examine(settings), _endpoint(settings), _disk(settings)]


def _broker(settings: Settings) -> Finding:
    try:
        config = client_config(settings, **{"socket.connection.setup.timeout.ms": 3000})
        cluster = AdminClient(config).list_topics(timeout=5)
    except UserError as error:
        return Finding("broker", False, str(error))
    except KafkaException as error:
        mend = "is it running? `driftloop up` starts one here; otherwise check DRIFTLOOP_KAFKA_*"
        return Finding("broker", False, f"{settings.kafka_bootstrap} does not answer ({error.args[0].str()}); {mend}")
    return Finding("broker", True, f"{settings.kafka_bootstrap}, {len(cluster.brokers)} brokers")


def _topics(settings: Settings) -> Iterator[Finding]:
    problems = _asked(lambda: topics.check(settings))
    if not problems:
        yield Finding("topics", True, "as the topology says")
    for problem in problems:
        yield Finding("topics", False, problem)


def _asked(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except (Retry, UserError) as error:
        return [str(error)]


def _clock(settings: Settings) -> Finding:
    """Compares with the newest reading's broker timestamp, the one clock that all parts share."""
    admin = AdminClient(client_config(settings))
    topic = settings.topic(ACTIVITY)
    try:
        known = admin.list_topics(topic, timeout=5).topics[topic].partitions
        asked = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in known}
        newest = max(
            (future.result().timestamp for future in admin.list_offsets(asked, request_timeout=5).values()), default=-1
        )
    except KafkaException as error:
        return Finding("clock", False, f"the broker does not tell times: {error.args[0].str()}")
    if newest <= 0:
        return Finding("clock", True, "no readings yet to compare with")
    ahead = newest / 1000 - time.time()
    if ahead > _SKEW_S:
        return Finding(
            "clock", False, f"the newest reading is {ahead:.0f} s in the future; synchronise the clocks (NTP)"
        )
    return Finding("clock", True, f"newest reading {-ahead:.0f} s ago")


def _mlflow(settings: Settings) -> Finding:
    uri = settings.mlflow_tracking_uri
    if uri is None:
        return Finding("MLflow", False, "none is known: `driftloop up` starts one here, or set MLFLOW_TRACKING_URI")
    if not uri.startswith("http"):
        return Finding("MLflow", True, f"{uri} (no server)")
    try:
        # Not /health, which answers even where the server refuses our Host header.
        url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
        reply = httpx.post(url, json={"max_results": 1}, timeout=5, trust_env=not _is_local(url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "MLflow", False, f"{uri} does not answer ({error}); `driftloop up`, or check MLFLOW_TRACKING_URI"
        )
    if reply.status_code == 403:
        return Finding("MLflow", False, f"{uri} refuses the host name; start it with --allowed-hosts naming it")
    if reply.is_success and "experiments" not in _content(reply):
        return Finding("MLflow", False, f"{uri} is no MLflow server; check MLFLOW_TRACKING_URI")
    return Finding("MLflow", reply.is_success, f"{uri} answers {reply.status_code}")


def _is_local(url: str) -> bool:
    """A proxy from the environment is for the outside world, not for this machine."""
    return httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")


def _content(reply: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        content = reply.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _endpoint(settings: Settings) -> Finding:
    if settings.router_port == 0:
        return Finding("endpoint", False, "no router is known: `driftloop up` starts one, or set DRIFTLOOP_ROUTER_PORT")
    try:
        url = f"{settings.router_url}/version"
        # Longer than the router's patience with a version that cannot be reached.
        reply = httpx.get(url, timeout=15, trust_env=not _is_local(url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("endpoint", False, f"{settings.router_url} does not answer ({error}); is `run router` running?")
    if reply.status_code == 503 and "Retry-After" not in reply.headers:
        return Finding("endpoint", True, f"{settings.router_url}, no model deployed yet")
    if not reply.is_success:
        return Finding(
            "endpoint", False, f"{settings.router_url} answers {reply.status_code}; see the deploy worker's log"
        )
    version = _content(reply).get("version")
    if version is None:
        return Finding("endpoint", False, f"{settings.router_url} is no router of ours; set DRIFTLOOP_ROUTER_PORT")
    return Finding("endpoint", True, f"{settings.router_url} serves version {version}")


def _disk(settings: Settings) -> Finding:
    folder = settings.home.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = f"{free / 1024**3:.1f} GiB free at {folder}"
    return Finding("disk", free > _FREE_BYTES, said if free > _FREE_BYTES else f"{said}; at least 2 GiB are needed")
