"""Kill two agents under load in every way we know, then compare what they left with an undisturbed run.

Between two faults every partition's committed offset must have moved. In the end everything is healed and drained.
"""

from __future__ import annotations

import atexit
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from schemas.settings import Settings
from streams import topics
from tests.bench.report import Measurement, parser, show
from tests.chaos import faults
from tests.chaos.broker import Broker
from tests.chaos.faults import FROZEN_AT, POINTS, Row, Scene, Stuck
from tests.chaos.judge import Judge, Verdict
from tests.chaos.traffic import Traffic

AGENT = ("-m", "workers.cli", "run", "agent")
PLANS = ("full", "short", "kills", "points", "calm")


def plan(name: str, kills: int, rng: random.Random, at: Sequence[str] = POINTS) -> list[tuple[str, int, Any]]:
    """Faults as (name, kills, how to do it) until so many kills are planned.

    full: all faults by turns, the points over and over. short: every kind once, several kills at a time.
    kills, points: only those, each alone. calm: no fault. at: the named points to choose from.
    """
    if name == "calm":
        return []
    if name == "short":
        return _short(kills, rng)
    found: list[tuple[str, int, Any]] = []
    points, frozen, number = _endless(at, rng), _endless(FROZEN_AT, rng), 0
    while (left := kills - sum(planned for _, planned, _ in found)) > 0:
        number += 1
        slots = rng.sample("ab", 2 if left > 1 and name == "full" and rng.random() < 0.4 else 1)
        if name == "full" and (other := _OTHERS.get(number % _CYCLE)) is not None:
            found.append(other(rng, frozen))
        elif name == "points" or (name == "full" and number % 2):
            found.append(_at_points({slot: _nth(next(points), rng) for slot in slots}))
        else:
            found.append(_kill(slots, again=left > 3 and name == "full" and rng.random() < 0.2))
    return found


def _short(kills: int, rng: random.Random) -> list[tuple[str, int, Any]]:
    points = [_nth(point, rng) for point in POINTS]
    rng.shuffle(points)
    # Those at the start of an agent together: they take no load.
    points.sort(key=lambda point: not point.startswith("in-re"))
    found = [_at_points(dict(zip("ab", points[at : at + 2], strict=False))) for at in range(0, len(points), 2)]
    found += [other(rng, _endless(FROZEN_AT, rng)) for other in (_sigterm, _frozen_at, _absent)]
    while sum(planned for _, planned, _ in found) < kills:
        found.append(_kill(["a", "b"], again=True))
    rng.shuffle(found)
    return found


def _endless(names: Sequence[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(names, len(names))


def _nth(point: str, rng: random.Random) -> str:
    return f"{point}:{1 if point.startswith('in-re') else rng.randint(1, 5)}"


# A fault: its name, the kills that it counts for, what does it.


def _at_points(chosen: dict[str, str]) -> tuple[str, int, Any]:
    return "at " + ", ".join(chosen.values()), len(chosen), partial(faults.at_points, points=chosen)


def _kill(names: Sequence[str], again: bool) -> tuple[str, int, Any]:
    times = 2 if again else 1
    name = "kill -9" + " of both" * (len(names) == 2) + " and of their successors" * again
    return name, times * len(names), lambda scene, row: faults.killed(scene, row, _slots(scene, names), again)


def _sigterm(rng: random.Random, _: Iterator[str]) -> tuple[str, int, Any]:
    name, alone = rng.choice("ab"), rng.random() < 0.5
    return "SIGTERM", 0, lambda scene, row: faults.terminated(scene, row, _slots(scene, name)[0], alone)


def _zombie(rng: random.Random, _: Iterator[str]) -> tuple[str, int, Any]:
    name = rng.choice("ab")
    return "zombie", 0, lambda scene, row: faults.zombie(scene, row, _slots(scene, name)[0], None, None)


def _frozen_at(rng: random.Random, points: Iterator[str]) -> tuple[str, int, Any]:
    """The agent that has taken over is killed as the zombie wakes: what that one wrote would then count."""
    name, other = rng.sample("ab", 2)
    point = f"{next(points)}:{rng.randint(2, 4)}"

    def do(scene: Scene, row: Row) -> None:
        faults.zombie(scene, row, _slots(scene, name)[0], point, _slots(scene, other)[0])

    return f"zombie at {point}, kill -9 of the other", 1, do


def _broker_killed(*_: Any) -> tuple[str, int, Any]:
    return "broker kill -9", 0, faults.broker_killed


def _broker_frozen(*_: Any) -> tuple[str, int, Any]:
    return "broker frozen", 0, faults.broker_frozen


def _absent(*_: Any) -> tuple[str, int, Any]:
    return "broker absent at start", 0, faults.broker_absent


_CYCLE = 27
_OTHERS = {
    4: _sigterm,
    7: _zombie,
    10: _frozen_at,
    13: _sigterm,
    16: _broker_killed,
    19: _frozen_at,
    22: _broker_frozen,
    25: _absent,
}


def _slots(scene: Scene, names: Sequence[str]) -> list[Any]:
    return [slot for slot in scene.slots if slot.name in names]


def run(
    *,
    kills: int,
    readings: int,
    seed: int,
    detector: str,
    rate: float,
    name: str,
    folder: Path,
    at: Sequence[str] = POINTS,
    program: Sequence[str] = AGENT,
    tell: Any = print,
    settings: Settings | None = None,
) -> tuple[Measurement, Verdict]:
    """Figures, a row for each fault, and the verdict. settings: a Kafka that is there; None starts one in folder.

    Faults of the broker need a broker of our own.
    """
    rng = random.Random(seed)
    faults_planned = plan(name, kills, rng, at)
    broker = Broker(folder / "stack") if settings is None else None
    if broker is not None:
        broker.start()
        broker.answers()
        settings = Settings(_env_file=None, kafka_bootstrap=broker.address, namespace="chaos.")
    assert settings is not None
    settings = settings.model_copy(update={"home": folder / "agents", "detector": detector})
    topics.create(settings)
    judge = Judge(settings)
    traffic = Traffic(settings, readings, seed, rate)
    scene = Scene(settings, broker, traffic, judge, rng, program)  # type: ignore[arg-type]
    atexit.register(scene.end)
    rows: list[Row] = []
    stuck = ""
    begun = time.monotonic()
    try:
        before = scene.committed()
        traffic.start()
        scene.ration(len(faults_planned))
        traffic.burst(scene.burst)
        for slot in scene.slots:
            scene.start(slot)
        scene.moved(before, time.monotonic())
        for number, (fault, planned, do) in enumerate(faults_planned, 1):
            row = Row(number, fault, planned)
            rows.append(row)
            if not scene.settled():
                row.note = f"begun with {judge.group.owners()} owners "
            scene.ration(len(faults_planned) - number)
            do(scene, row)
            tell(
                f"{time.monotonic() - begun:7.1f} s  {number}/{len(faults_planned)} {fault}: moved after "
                f"{row.seconds:.1f} s{f', early {row.too_early}' if row.too_early else ''} {row.note}"
            )
        traffic.finish()
        scene.drained()
    except Stuck as error:
        stuck = str(error)
        tell(f"STUCK: {stuck}")
    finally:
        last_exits = [scene.stop(slot)[1] for slot in scene.slots if slot.agent is not None]
        traffic.stop()
        atexit.unregister(scene.end)
    verdict = judge.verdict(traffic.sent)
    verdict.examples[:0] = [f"ended by itself: {said}" for said in scene.restarts]
    if broker is not None:
        broker.kill()
    return _measured(scene, rows, verdict, stuck, last_exits, time.monotonic() - begun), verdict


def _measured(
    scene: Scene, rows: list[Row], verdict: Verdict, stuck: str, last_exits: list[int], seconds: float
) -> Measurement:
    def worst(*kinds: str) -> float:
        return max((row.seconds for row in rows if row.fault.startswith(kinds)), default=0.0)

    figures = {
        "kills": sum(row.kills for row in rows),
        "faults": len(rows),
        "lost": verdict.lost,
        "raw_duplicates": verdict.raw_duplicates,
        "missing_ids": verdict.missing_ids,
        "extra_ids": verdict.extra_ids,
        "worst_takeover_s": worst("kill", "at ", "zombie"),
        "worst_restart_s": worst("SIGTERM"),
        "worst_sigterm_s": max((row.exit_seconds for row in rows if row.exit_seconds is not None), default=0.0),
        "worst_after_broker_s": worst("broker"),
        "committed_too_early": verdict.committed_too_early,
        "wrong_letters": verdict.wrong_letters,
        "duplicate_letters": verdict.duplicate_letters,
        "states_rewound": verdict.states_rewound,
        "states_differ": verdict.states_differ,
        "expected_ids": verdict.expected_ids,
        "expected_letters": verdict.expected_letters,
        "records": verdict.records,
        "readings": verdict.readings,
        "points_not_reached": sum("not reached" in row.note for row in rows),
        "ended_by_themselves": len(scene.restarts),
        "exits_not_0": sum("SIGTERM gave" in row.note for row in rows) + sum(code != 0 for code in last_exits),
        "stuck": int(bool(stuck)),
        "seconds": seconds,
    }
    return Measurement("kill_agent", {}, figures, [asdict(row) for row in rows])


def main() -> None:
    """Exit 1 if anything was lost, invented, committed too early, or no progress was made."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--readings", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments.add_argument("--detector", default="raw", choices=("raw", "per-feature", "confirmed"))
    arguments.add_argument("--rate", type=float, default=3_000, help="readings a second while a fault happens")
    arguments.add_argument("--plan", default="full", choices=PLANS)
    arguments.add_argument("--at", nargs="+", default=POINTS, choices=POINTS, metavar="POINT", help="only these points")
    arguments.add_argument("--planted", help="run the agent with this bug of tests.chaos.planted")
    arguments.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else broker and agents would stay
    print(f"seed {given.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-")) if given.keep is None else given.keep.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    program = AGENT if given.planted is None else ("-m", "tests.chaos.planted", given.planted)
    measured, verdict = run(
        kills=given.kills,
        readings=given.readings,
        seed=given.seed,
        detector=given.detector,
        rate=given.rate,
        name=given.plan,
        folder=folder,
        at=given.at,
        program=program,
        tell=partial(print, flush=True),
    )
    measured.settings = {name: getattr(given, name) for name in ("kills", "readings", "seed", "detector", "plan")}
    show(measured, given.json)
    for example in verdict.examples[:20]:
        print(example)
    bad = not verdict.clean or measured.figures["stuck"]
    if given.keep is None and not bad:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs: {folder}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
