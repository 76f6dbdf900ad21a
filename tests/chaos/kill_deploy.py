"""The deploy worker killed at each named point of a rollout, again and again: `python -m tests.chaos.kill_deploy`.

A version serves; the next one is announced to a worker that ends, as by kill -9, when it reaches the point; a second
worker goes on. Meanwhile a client asks the router ten times a second. Judged when the next version serves alone.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.process import free_port
from schemas.failpoints import EXIT_CODE, VARIABLE
from tests import engine as engines
from tests.bench.report import Measurement, parser, show
from tests.chaos.rollouts import Client, announce, deployed, engine_and_registry, world
from tests.demo_azure import azure
from tests.integration import worker_processes as workers
from workers.targets import make_target

POINTS = ("deploy.created", "deploy.ready", "jobs.emitted", "jobs.before-commit", "deploy.switched")
IMAGE_POINTS = ("deploy.built", "deploy.pushed")


def measure(
    folder: Path, target: str, points: list[str], kills: int, addresses: dict[str, str] | None = None
) -> Measurement:
    """Each point so many times; addresses: of Kafka and MLflow, if they are there."""
    rows = []
    with ExitStack() as left:
        fields: dict[str, Any] = {}
        if target == "docker":
            _, fields, environment = left.enter_context(engine_and_registry(folder))
            os.environ |= environment
        elif target == "aci-fake":
            os.environ |= azure(left, folder, left.enter_context(engines.engine()))
        fields |= {"router_port": free_port(), "bake_seconds": 0}
        settings = left.enter_context(world(folder, addresses, **fields))
        log = folder / "deploy.log"
        left.enter_context(workers.worker(settings, "router", folder / "router.log"))
        with workers.worker(settings, "deploy", log):
            first = announce(settings, 0)
            workers.eventually(lambda: deployed(settings) == [first], 180, log.read_text)
        place = make_target(settings)
        left.callback(lambda: [place.delete(each) for each in place.list(settings.model)])
        with Client(f"{settings.router_url}/version") as client:
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
    arguments.add_argument("--target", choices=["process", "docker", "aci-fake"], default="process")
    arguments.add_argument("--kills", type=int, default=5, help="at each point")
    arguments.add_argument("--points", help="comma-separated; all of the target's")
    given = arguments.parse_args()
    points = [*(() if given.target == "process" else IMAGE_POINTS), *POINTS]
    points = given.points.split(",") if given.points else points
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), given.target, points, given.kills), given.json)


if __name__ == "__main__":
    main()
