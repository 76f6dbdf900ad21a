"""Where the agent's time goes: its main thread sampled every 2 ms while it works off a topic.

`us_a_reading` is wall time of the main thread; threads of librdkafka, which work beside it on the same core, stand in a
row of their own by the CPU time they used.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.bench.rig import OTHERS, START_TS, BenchAgent, Commits, Rig, agents, catch_up, pinned, rig, wait_until

DEVICES = 24
SAMPLED = ("-m", "tests.bench.agents.sampled", "run", "agent")
# Function of ours, module of ours, or library: the stage that it belongs to. What is not named here stands by its name.
STAGES = {
    "streams.transport": "fetch",
    "streams.fetch": "fetch",
    "aiokafka.consumer": "fetch",
    "aiokafka.record": "fetch",
    "streams.records": "decode",
    "streams.columns": "decode",
    "streams.gate": "decode",
    "streams.gate:usable": "gate",
    "streams.gate:why_unusable": "gate",
    "streams.gate:in_order": "gate",
    "streams.gate:prints_of": "gate",
    "streams.intake": "gate",
    "streams.intake:_cut": "windows",
    "streams.intake:_windows_at": "windows",
    "streams.windows": "windows",
    "streams.statistics": "statistics",
    "streams.features": "statistics",
    "streams.measures": "statistics",
    "streams.profile": "statistics",
    "streams.adwin": "detectors",
    "streams.confirmed": "detectors",
    "streams.bouts": "detectors",
    "streams.calibration": "detectors",
    "streams.conditioning": "detectors",
    "streams.confirmation": "detectors",
    "streams.explain": "detectors",
    "streams.quality": "detectors",
    "streams.drift": "detectors",
    "streams.processor": "detectors",
    "streams.agent": "sends",
    "streams.outbox": "sends",
    "aiokafka.producer": "sends",
    "schemas.": "sends",
    "streams.agent:_checkpoint": "snapshots",
    "streams.processor:snapshot": "snapshots",
    "streams.state": "snapshots",
    "structlog.": "logs",
    "workers.": "engine",
    "faust.": "engine",
    "mode.": "engine",
    "aiokafka.": "engine",
    "python": "engine",
    "tests.bench": "(sampling)",
}


def stage(place: str) -> str:
    module = place.split(":", 1)[0]
    known = next((STAGES[name] for name in (place, module, f"{module.split('.', 1)[0]}.") if name in STAGES), None)
    return known or place


def thread_cpu(agent: BenchAgent) -> float:
    """CPU seconds of the threads that librdkafka has started."""
    spent = 0.0
    names = {int(task.name): (task / "comm").read_text() for task in Path(f"/proc/{agent.seen.pid}/task").iterdir()}
    for thread in agent.seen.threads():
        if names.get(thread.id, "").startswith("rdk:"):
            spent += thread.user_time + thread.system_time
    return spent


def measure(on: Rig, workload: str, batch: int, readings: int, detector: str) -> list[dict[str, object]]:
    settings = on.settings(workload, detector=detector)
    on.fill(settings, simulate(DEVICES, readings / DEVICES / 50, 1, START_TS), batch)
    samples = on.home / f"{workload}.json"
    commits = Commits(settings)
    with agents(settings, program=SAMPLED, BENCH_SAMPLES=str(samples)) as running, pinned(OTHERS):
        wait_until(lambda: running[0].ready, 120, "ready", running)
        before, spent = Counter(json.loads(samples.read_text())), thread_cpu(running[0])
        done = catch_up(commits, running)
        counts, spent = Counter(json.loads(samples.read_text())) - before, thread_cpu(running[0]) - spent
    commits.close()
    by_stage: Counter[str] = Counter()
    for place, count in counts.items():
        by_stage[stage(place)] += count
    total = by_stage.total()
    rows = [
        {"workload": workload, "stage": name, "share": count / total, "us_a_reading": count * 2000 / readings}
        for name, count in by_stage.most_common()
        if count > total / 200
    ]
    rows.append(
        {
            "workload": workload,
            "stage": "(librdkafka's threads)",
            "share": float("nan"),
            "us_a_reading": spent / readings * 1e6,
        }
    )
    rows.append(
        {
            "workload": workload,
            "stage": "(all, measured from outside)",
            "share": 1.0,
            "us_a_reading": 1e6 / (done.share_per_s * readings),
        }
    )
    return rows


def main() -> None:
    """Single readings, then batches of 50."""
    arguments = parser(__doc__)
    arguments.add_argument("--readings", type=int, default=500_000)
    arguments.add_argument("--detector", default="raw", help="default %(default)s")
    given = arguments.parse_args()
    rows = []
    with rig() as on:
        for workload, batch in (("single", 1), ("batch50", 50)):
            rows += measure(on, workload, batch, given.readings, given.detector)
    show(
        Measurement("breakdown", {"readings": given.readings, "detector": given.detector}, rows=rows),
        given.json,
    )


if __name__ == "__main__":
    main()
