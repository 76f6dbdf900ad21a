"""Two retrain workers on one drift topic, killed and frozen at random: `python -m tests.chaos.kill_workers --kills N`.

Devices drift one after the other; each drift event is delivered up to three times. Meanwhile a worker is killed (with
the training in its child), ended at a named point of its transaction, or frozen past its session and woken. Judged in
the end: versions in MLflow for a drift id, committed events of an id, drifts without an answer, processes left over.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil

from schemas.activity import ACTIVITIES
from schemas.envelope import envelope
from schemas.events import DecisionMade, ModelRegistered, Position
from schemas.failpoints import VARIABLE
from schemas.settings import Settings
from schemas.topology import DECISIONS, DEPLOYED, DRIFT, MODEL_REGISTERED
from streams.inject import apply, parse_drift
from streams.producer import produce
from streams.replay import end_ranges
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.chaos.rollouts import world
from tests.integration import worker_processes as workers
from tests.unit.controlling import drift
from workers import registry

DEVICES, LEARN_S, LATER_S = 6, 130.0, 150.0
WAYS = ("kill", "jobs.emitted", "jobs.before-commit", "freeze")


def drifted(settings: Settings, played, number: int, rng: random.Random) -> str:
    """Play a device's drifted readings and tell of the drift, once or more often; the event's id."""
    before = end_ranges(settings)
    assert produce(
        settings, [apply(played, parse_drift("noise:0.3@0"), np.random.default_rng(number))], batch=50
    ).complete
    moved = next(old for old, new in zip(before, end_ranges(settings), strict=True) if old.end != new.end)
    event = drift(
        device=played.device,
        model=settings.model,
        position=Position("activity", moved.partition, moved.end + 1),
        change_position=Position("activity", moved.partition, moved.end),
    )
    id = f"drift-{number}"
    for _ in range(rng.randint(1, 3)):
        workers.send(settings, DRIFT, envelope(event, id=id, source="chaos", subject=played.device, time=1.0))
    return id


def answered(found) -> set[str]:
    """Ids that some decision or registration is about."""
    decided = {id for each in workers.of_type(found, DecisionMade) for id in each.concerns}
    return decided | {id for each in workers.of_type(found, ModelRegistered) for id in each.caused_by}


def jobs(settings: Settings) -> list[psutil.Process]:
    home = str(settings.home.resolve())
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if "workers.retrain_job" in (each.info["cmdline"] or ()) and home in each.info["cmdline"][-1]
    ]


def measure(folder: Path, kills: int, seed: int, minutes: float) -> Measurement:
    rng = random.Random(seed)
    rows, ids = [], []
    patient = {"cooldown_seconds": 1, "daily_trainings": 10_000, "breaker_rejections": 10_000}
    lenient = {"promote_margin": 0.0, "anchor_loss": 1.0, "class_loss": 1.0}
    few = {"first_windows": 300, "recent_windows": 90, "recent_activities": 4}
    with world(folder, **few, **patient, **lenient) as base, ExitStack() as left:
        log = folder / "retrain.log"
        slots = {slot: workers.changed(base, slot=slot) for slot in ("1", "2")}
        running = {}

        def start(slot: str, **environ: str) -> None:
            made = workers.worker(slots[slot], "retrain", log, **environ)
            running[slot] = (made, made.__enter__())

        def end(slot: str) -> None:
            made, _ = running.pop(slot)
            made.__exit__(None, None, None)

        start("1")
        start("2")
        left.callback(lambda: [end(slot) for slot in list(running)])
        people = simulate(DEVICES, LEARN_S, 7, time.time() - LEARN_S, bout_seconds=(12.0, 30.0),
                          mix=dict.fromkeys(ACTIVITIES, 1.0))  # fmt: skip
        assert produce(base, people, batch=50).complete
        workers.eventually(lambda: workers.events(base, MODEL_REGISTERED), 120, log.read_text)
        until = time.monotonic() + minutes * 60
        for number in range(kills):
            if time.monotonic() > until:
                break
            began = time.time()
            later = simulate(DEVICES, LATER_S, 100 + number, time.time() + LATER_S * 2 * (number + 1),
                             bout_seconds=(12.0, 30.0), mix=dict.fromkeys(ACTIVITIES, 1.0))  # fmt: skip
            slot, way = rng.choice(["1", "2"]), WAYS[number % len(WAYS)]
            if way.startswith("jobs."):  # whichever owns the partition reaches it
                for each in ("1", "2"):
                    end(each)
                    start(each, **({VARIABLE: way} if each == slot else {}))
            ids.append(drifted(base, later[number % DEVICES], number, rng))
            time.sleep(rng.uniform(0, 18))
            _, process = running[slot]
            if way == "freeze":
                process.send_signal(signal.SIGSTOP)
                time.sleep(13)  # past its session
                process.send_signal(signal.SIGCONT)
            else:
                process.kill()
                process.wait()
                time.sleep(rng.choice([0, 0, 12]))
                end(slot)
                start(slot)
            workers.eventually(
                lambda id=ids[-1]: id in answered(workers.events(base, DECISIONS, MODEL_REGISTERED)), 400, log.read_text
            )
            for each in ("1", "2"):  # one that was fenced has ended: a supervisor starts it again
                if running[each][1].poll() is not None:
                    end(each)
                    start(each)
            rows.append({"kill": number + 1, "way": way, "slot": slot, "answered_s": time.time() - began})
            print(rows[-1], flush=True)
        for slot in list(running):
            end(slot)
        time.sleep(5)
        orphans = len(jobs(base))
        found = workers.events(base, DECISIONS, MODEL_REGISTERED)
        registered = workers.of_type(found, ModelRegistered)
        client = registry.connect(base)
        made = Counter(each.tags["drift.event_id"] for each in client.search_model_versions(f"name='{base.model}'"))
        per_event = Counter(each.id for each in found)
        causes = Counter(id for each in registered for id in each.caused_by)
    figures = {
        "kills": len(rows),
        "max_versions_per_drift": max([*made.values(), *causes.values()]),
        "max_events_per_id": max(per_event.values()),
        "unanswered": len(set(ids) - answered(found)),
        "versions": len(registered),
        "versions_never_announced": len(made) - len(registered),
        "live_deployments": len(workers.events(base, DEPLOYED)),  # nobody deploys here
        "orphans": orphans,
        "worst_answer_s": max(row["answered_s"] for row in rows),
    }
    return Measurement("kill_workers", {"kills": kills, "seed": seed}, figures, rows)


def main() -> None:
    """Kill, judge, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--minutes", type=float, default=30, help="at most")
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), given.kills, given.seed, given.minutes), given.json)


if __name__ == "__main__":
    main()
