"""Kill two agents under load in every way we know, then compare what they left with an undisturbed run.

Between two faults every partition's committed offset must have moved. In the end everything is healed and drained.
"""

from __future__ import annotations

import random
import shutil
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
_BURST_SHARE = 0.6  # of a fault's readings; the rest comes while the agents recover
_RECOVERY_S = 16.0


def plan(name: str, kills: int, rng: random.Random) -> Iterator[tuple[str, int, Any]]:
    """Faults as (name, kills, how to do it) until so many kills are planned.

    full: all faults by turns. short: every kind once, two kills at a time. kills, points: only those, each alone.
    calm: no fault.
    """
    if name == "calm":
        return
    points = list(POINTS)
    rng.shuffle(points)
    frozen = list(FROZEN_AT)
    nth = partial(rng.randint, 1, 5)
    done = number = 0
    while done < kills:
        both = name == "short" or (name == "full" and rng.random() < 0.4)
        wanted = min(2 if both else 1, kills - done)
        slots = rng.sample("ab", wanted)
        other = _other_fault(name, number, frozen, rng)
        number += 1
        if other is not None:
            done += other[1]
            yield other
        elif name == "points" or (name != "kills" and (number % 2 or name == "short") and points):
            chosen = {}
            for slot in slots:
                point = points.pop(0)
                if name == "full":
                    points.append(point)
                once = point in ("in-rebalance", "in-recovery")
                chosen[slot] = f"{point}:{1 if once else nth()}"
                if not points:
                    break
            done += len(chosen)
            yield "points " + " ".join(chosen.values()), len(chosen), partial(_points, chosen)
            if name == "points" and not points:
                return
        else:
            done += wanted
            yield "kill -9" + " of both" * (wanted == 2), wanted, partial(_kill, slots)


def _other_fault(name: str, number: int, frozen: list[str], rng: random.Random) -> tuple[str, int, Any] | None:
    """A fault that is not simply a kill, every now and then."""
    slot = rng.choice("ab")
    point = frozen[number // 12 % len(frozen)]
    zombie = ("zombie", 0, partial(_zombie, slot, None, False))
    frozen_at = (f"zombie at {point}", 1, partial(_zombie, slot, f"{point}:{rng.randint(2, 4)}", True))
    sigterm = ("SIGTERM", 0, partial(_term, slot, rng.random() < 0.5))
    killed = ("broker kill -9", 0, faults.broker_killed)
    absent = ("broker absent at start", 0, faults.broker_absent)
    hangs = ("broker frozen 45 s", 0, faults.broker_frozen)
    if name == "short":
        return {3: sigterm, 6: frozen_at, 8: killed, 10: absent}.get(number)
    if name == "full":
        turns = {4: sigterm, 7: zombie, 10: frozen_at, 13: sigterm, 16: killed, 19: frozen_at, 22: hangs, 25: absent}
        return turns.get(number % 27)
    return None


def _slots(scene: Scene, names: Sequence[str]) -> list[Any]:
    return [slot for slot in scene.slots if slot.name in names]


def _kill(names: Sequence[str], scene: Scene, row: Row) -> None:
    faults.killed(scene, row, _slots(scene, names))


def _points(chosen: dict[str, str], scene: Scene, row: Row) -> None:
    faults.at_points(scene, row, chosen)


def _term(name: str, alone: bool, scene: Scene, row: Row) -> None:
    faults.terminated(scene, row, _slots(scene, name)[0], alone)


def _zombie(name: str, point: str | None, then_kill: bool, scene: Scene, row: Row) -> None:
    (slot,) = _slots(scene, name)
    (other,) = [each for each in scene.slots if each is not slot]
    faults.zombie(scene, row, slot, point, other if then_kill else None)


def run(
    *,
    kills: int,
    readings: int,
    seed: int,
    detector: str,
    rate: float,
    name: str,
    folder: Path,
    program: Sequence[str] = AGENT,
    tell: Any = print,
    settings: Settings | None = None,
) -> tuple[Measurement, Verdict]:
    """Figures, a row for each fault, and the verdict. settings: a Kafka that is there; None starts one in folder.

    Faults of the broker need a broker of our own.
    """
    rng = random.Random(seed)
    faults_planned = list(plan(name, kills, rng))
    budget = readings / (len(faults_planned) + 1)
    burst = round(budget * _BURST_SHARE)
    broker = Broker(folder / "stack") if settings is None else None
    if broker is not None:
        broker.start()
        broker.answers()
        settings = Settings(_env_file=None, kafka_bootstrap=broker.address, namespace="chaos.")
    assert settings is not None
    settings = settings.model_copy(update={"home": folder / "agents", "detector": detector})
    topics.create(settings)
    judge = Judge(settings)
    traffic = Traffic(settings, readings, seed, rate, max(50.0, (budget - burst) / _RECOVERY_S))
    scene = Scene(settings, broker, traffic, judge, rng, program, burst)  # type: ignore[arg-type]
    rows: list[Row] = []
    stuck = ""
    begun = time.monotonic()
    try:
        before = scene.committed()
        traffic.start()
        traffic.burst(burst)
        for slot in scene.slots:
            scene.start(slot)
        scene.moved(before, time.monotonic())
        for number, (fault, planned, do) in enumerate(faults_planned, 1):
            row = Row(number, fault, planned)
            rows.append(row)
            do(scene, row)
            tell(
                f"{time.monotonic() - begun:7.1f} s  {number}/{len(faults_planned)} {fault}: moved after "
                f"{row.seconds:.1f} s{f', early {row.too_early}' if row.too_early else ''} {row.note}"
            )
        traffic.finish()
        scene.wait(
            lambda: judge.group.committed() == judge.group.ends(),
            60 + readings / 5_000,
            "not all was worked off",
        )
    except Stuck as error:
        stuck = str(error)
        tell(f"STUCK: {stuck}")
    last_exits = [scene.stop(slot)[1] for slot in scene.slots if slot.agent is not None]
    scene.end()
    traffic.stop()
    verdict = judge.verdict(traffic.sent)
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
        "worst_takeover_s": worst("kill", "points", "zombie"),
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
        "exits_not_0": sum(code != 0 for code in last_exits),
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
    arguments.add_argument("--planted", help="run the agent with this bug of tests.chaos.planted")
    arguments.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = arguments.parse_args()
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
