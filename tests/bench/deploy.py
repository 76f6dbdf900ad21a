"""Swapping versions under load: requests that failed, how long they took, and what making the images took.

A client sends requests at a fixed rate through the router, whether or not answers come back; meanwhile one version
after another is created, tried, switched to, and the one before it deleted.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from deploy import modelfiles, rollout
from deploy.target import DeploymentSpec
from tests.bench.images import image_seconds
from tests.bench.report import Measurement, parser, show
from tests.bench.traffic import load, route
from tests.places import PLACES, ROOT, write_model

GRACE_S = 1.0


def memory_mb(place: object, endpoint: str) -> float:
    """Resident memory of the process that listens there, or of the container's first process."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    engine = getattr(place, "engine", None)
    for container in engine.containers.list() if engine else ():
        bound = container.attrs["HostConfig"]["PortBindings"].get("8080/tcp") or [{}]
        if (bound[0].get("HostIp"), bound[0].get("HostPort")) == (host, port):
            return psutil.Process(container.attrs["State"]["Pid"]).memory_info().rss / 2**20
    for each in psutil.net_connections("tcp"):
        if each.status == "LISTEN" and each.pid and (each.laddr.ip, str(each.laddr.port)) == (host, port):
            return psutil.Process(each.pid).memory_info().rss / 2**20
    return float("nan")


def main() -> None:
    """Measure one target."""
    arguments = parser(__doc__)
    arguments.add_argument("--target", choices=["process", "docker", "aci-fake"], default="process")
    arguments.add_argument("--swaps", type=int, default=20)
    arguments.add_argument("--rate", type=float, default=200.0)
    arguments.add_argument("--idle", type=float, default=10.0, help="seconds of load before the first swap")
    given = arguments.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no version is left running
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), given.target, given.swaps, given.rate, given.idle)
    show(measured, given.json)


def measure(folder: Path, name: str, swaps: int, rate: float, idle: float) -> Measurement:
    """The swaps, one after the other, under load."""
    place = PLACES[name.removesuffix("-fake")](folder / "home")
    target = place.target()
    specs = []
    for number in range(1, swaps + 2):
        files = write_model(folder / f"model-{number}", number)
        specs.append(DeploymentSpec("bench", str(number), modelfiles.digest(files), files))
    cases = modelfiles.smoke_cases(specs[0].folder)
    body = f'{{"instances": {cases.inputs[:1]}}}'.encode()

    context = multiprocessing.get_context("spawn")
    orders, theirs = context.Pipe()
    router = context.Process(target=route, args=(str(folder / "route.json"), theirs), daemon=True)
    router.start()
    address = f"http://127.0.0.1:{orders.recv()}"
    rows: list[dict[str, object]] = []
    marks: list[float] = []
    stop, stopped = context.Pipe()
    client = context.Process(target=load, args=(f"{address}/invocations", body, rate, stopped), daemon=True)
    try:
        current = target.create(specs[0])
        rollout.wait_ready(target, current, 120)
        took = rollout.smoke(current.endpoint, cases)
        orders.send((current.endpoint, current.version))
        orders.recv()
        client.start()
        stop.recv()
        time.sleep(2)
        begun = time.time()
        time.sleep(idle)
        swapping = time.time()
        for spec in specs[1:]:
            marks.append(time.time())
            began = time.perf_counter()
            new = target.create(spec)
            created = time.perf_counter()
            rollout.wait_ready(target, new, 120)
            rollout.smoke(new.endpoint, modelfiles.smoke_cases(spec.folder))
            ready = time.perf_counter()
            orders.send((new.endpoint, new.version))
            orders.recv()
            time.sleep(GRACE_S)
            stopping = time.perf_counter()
            target.delete(current)
            rows.append(
                {"version": spec.version, "created_s": created - began, "ready_s": ready - created}
                | {"stop_s": time.perf_counter() - stopping, "rss_mb": memory_mb(place, new.endpoint)}
            )
            current = new
        ended = time.time()
        stop.send(None)
        asked = stop.recv()
    finally:
        for each in target.list("bench"):
            target.delete(each)
        orders.send(None)
        image = dict.fromkeys(("image_build_s", "image_push_s")) if name == "process" else image_seconds(place.engine)
        place.leave()
    for row, begun_at, ended_at in zip(rows, marks, [*marks[1:], ended], strict=True):
        row["p99_ms"] = float(np.percentile([ms for when, ms, _ in asked if begun_at <= when < ended_at], 99))
    quiet = [ms for when, ms, _ in asked if begun <= when < swapping]
    busy = [ms for when, ms, _ in asked if swapping <= when < ended]
    figures = {
        "requests": len(asked),
        "failed": sum(status != 200 for _, _, status in asked),
        "turned_away": sum(status == 503 for _, _, status in asked),  # of the failed: more than the router holds
        "p50_idle_ms": float(np.percentile(quiet, 50)),
        "p99_idle_ms": float(np.percentile(quiet, 99)),
        "p50_swap_ms": float(np.percentile(busy, 50)),
        "p99_swap_ms": float(np.percentile(busy, 99)),
        "p99_swap_median_ms": float(np.median([row["p99_ms"] for row in rows])),
        "smoke_p50_ms": took.p50_ms,
        "stop_s": float(np.median([row["stop_s"] for row in rows])),
        "rss_mb": float(np.median([row["rss_mb"] for row in rows])),
        **image,
    }
    return Measurement("deploy", {"target": name, "swaps": swaps, "rate": rate}, figures, rows)


if __name__ == "__main__":
    main()
