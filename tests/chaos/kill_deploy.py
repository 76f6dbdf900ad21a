"""The deploy worker killed at each named point of a rollout, again and again: `python -m tests.chaos.kill_deploy`.

A version serves; the next one is announced to a worker that ends, as by kill -9, when it reaches the point; a second
worker goes on. Meanwhile a client asks the router ten times a second. Judged when the next version serves alone.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import trustme

from deploy.local.stack import Stack
from deploy.process import free_port
from schemas.envelope import envelope
from schemas.events import ModelDeployed
from schemas.failpoints import EXIT_CODE, VARIABLE
from schemas.settings import Settings
from schemas.topology import DEPLOYED, MODEL_REGISTERED
from streams import topics
from tests import engine as engines
from tests.bench.report import Measurement, parser, show
from tests.integration import worker_processes as workers
from workers.targets import make_target

POINTS = ("deploy.created", "deploy.ready", "jobs.emitted", "jobs.before-commit", "deploy.switched")
IMAGE_POINTS = ("deploy.built", "deploy.pushed")


class Client:
    """Asks the router until it is left; answers: (seconds, status, version)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[float, int, str]] = []
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            while not self.left.wait(0.1):
                try:
                    reply = client.get(f"{self.url}/version")
                    self.answers.append((time.time(), reply.status_code, reply.headers.get("x-driftloop-version", "")))
                except httpx.HTTPError:
                    self.answers.append((time.time(), 0, ""))

    def __enter__(self) -> Client:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.join(20)


@contextmanager
def world(folder: Path, target: str) -> Iterator[tuple[Settings, dict[str, str]]]:
    """Servers, topics and, for docker, an engine and a registry; the settings and what they cannot say."""
    with ExitStack() as left:
        stack = Stack(folder / "stack", Settings(_env_file=None))
        left.callback(stack.down)
        addresses = stack.up([], services={"kafka", "mlflow"})
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            namespace=f"k{uuid.uuid4().hex[:6]}.",
            model=f"m{uuid.uuid4().hex[:8]}",
            kafka_bootstrap=addresses["DRIFTLOOP_KAFKA_BOOTSTRAP"],
            mlflow_tracking_uri=addresses["MLFLOW_TRACKING_URI"],
            router_port=free_port(),
            grace_seconds=0.5,
            bake_seconds=0,
            target=target,
        )
        environment = {}
        if target == "docker":
            left.enter_context(engines.engine())
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(folder / "ca.pem"))
            data = engines.HOME / "registry"
            address = left.enter_context(engines.registry(folder / "registry", ca=authority, data=data))
            settings = settings.model_copy(
                update={
                    "base_image": engines.BASE,
                    "image_repository": f"{address}/driftloop/models",
                    "registry_ca": folder / "ca.pem",
                }
            )
            environment = {"DOCKER_HOST": f"unix://{engines.HOME}/docker.sock"}
        topics.create(settings)
        yield settings, environment


def deployed(settings: Settings) -> list[str]:
    return [each.version for each in workers.of_type(workers.events(settings, DEPLOYED), ModelDeployed)]


def announce(settings: Settings, number: int) -> str:
    registered = workers.registered_version(settings, f"event-{number}", seed=number)
    told = envelope(registered, id=f"registered-{number}", source="chaos", subject="", time=1.0)
    workers.send(settings, MODEL_REGISTERED, told)
    return registered.version


def measure(folder: Path, target: str, points: list[str], kills: int) -> Measurement:
    """Each point so many times."""
    import os

    rows = []
    with world(folder, target) as (settings, environment), ExitStack() as left:
        os.environ |= environment
        log = folder / "deploy.log"
        left.enter_context(workers.worker(settings, "router", folder / "router.log"))
        with workers.worker(settings, "deploy", log):
            first = announce(settings, 0)
            workers.eventually(lambda: deployed(settings) == [first], 180, log.read_text)
        place = make_target(settings)
        left.callback(lambda: [place.delete(each) for each in place.list(settings.model)])
        with Client(settings.router_url) as client:
            workers.eventually(lambda: client.answers and client.answers[-1][1] == 200)
            for number in range(1, kills * len(points) + 1):
                point = points[(number - 1) % len(points)]
                before = len(client.answers)
                with workers.worker(settings, "deploy", log, **{VARIABLE: point}) as worker:
                    version = announce(settings, number)
                    ended = worker.wait(120)
                died = time.time()
                with workers.worker(settings, "deploy", log):
                    workers.eventually(lambda v=version: deployed(settings)[-1] == v, 120, log.read_text)
                    alone = workers.eventually(
                        lambda v=version: [each.version for each in place.list(settings.model)] == [v],
                        60,
                        log.read_text,
                    )
                    workers.eventually(lambda v=version: client.answers[-1][2] == v)
                asked = client.answers[before:]
                rows.append(
                    {
                        "point": point,
                        "version": version,
                        "exit": ended,
                        "events": deployed(settings).count(version),
                        "alone": alone,
                        "asked": len(asked),
                        "failed": sum(status != 200 for _, status, _ in asked),
                        "versions_seen": len({seen for _, _, seen in asked}),
                        "recovered_s": time.time() - died,
                    }
                )
        live = [each.version for each in place.list(settings.model)]
        orphans = [each for each in live if each != deployed(settings)[-1]]
    figures = {
        "kills": len(rows),
        "killed_at_point": sum(row["exit"] == EXIT_CODE for row in rows),
        "max_events_per_id": max(row["events"] for row in rows),
        "live_deployments": len(live),
        "orphans": len(orphans),
        "requests": sum(row["asked"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
    }
    return Measurement("kill_deploy", {"target": target, "points": points, "kills": kills}, figures, rows)


def main() -> None:
    """Kill, judge, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--target", choices=["process", "docker"], default="process")
    arguments.add_argument("--kills", type=int, default=5, help="at each point")
    arguments.add_argument("--points", help="comma-separated; all of the target's")
    given = arguments.parse_args()
    points = [*(IMAGE_POINTS if given.target == "docker" else ()), *POINTS]
    points = given.points.split(",") if given.points else points
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), given.target, points, given.kills), given.json)


if __name__ == "__main__":
    main()
