"""Readings a second of Driftloop's agent and of what people would use instead: same broker, same topics, same work.

The work: one ADWIN for each channel that `raw` mode watches, on every reading, so all must find the same drifts;
`driftloop-windowed` runs the detector that the product really uses. Each consumer is alone with the broker, has one
core, is there before the first reading, and starts at the earliest one. The topics are filled once. The agent counts a
reading when it is committed: drift events acknowledged, state saved. Seconds are wall time.

`core` is the agent's core without Faust, effects and commits. Quix Streams and Bytewax run in `.venv-bench`
(`make bench` makes it); faust-stock gets fewer readings, for it is slow.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from river.drift import ADWIN

from schemas.activity import CHANNEL_NAMES, SAMPLE_RATE_HZ
from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.adwin import RawDetector
from streams.recording import Recording
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.bench.rig import (
    CONSUMERS,
    OTHERS,
    ROOT,
    START_TS,
    Commits,
    Rig,
    agents,
    catch_up,
    drifts,
    pinned,
    rig,
    say,
)

PEERS = Path(__file__).parent / "peers"
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
CHANNELS = [feature for feature, _ in RawDetector().names]
DEVICES = 24
WORKLOADS = {"single": 1, "batch50": 50}
SHORTER, SHORTEST = 20, 20_000  # faust-stock's share of the readings is one of so many, but at least so many
LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Topic:
    """A filled `activity` topic. drifts: what river finds in it."""

    workload: str
    settings: Settings
    messages: int
    readings: int
    drifts: int


@dataclass(frozen=True, slots=True)
class Round:
    """One consumer's outcome on one topic."""

    readings_per_s: float
    cpu_s_per_million: float
    readings: int
    drifts: int


Run = Callable[[Rig, Topic], Round]


def driftloop(detector: str) -> Run:
    def run(on: Rig, topic: Topic) -> Round:
        settings = topic.settings.model_copy(update={"detector": detector})
        on.reset(settings)
        commits = Commits(settings)
        with agents(settings) as running, pinned(OTHERS):
            done = catch_up(commits, running, seconds=LIMIT_S)
        commits.close()
        return Round(
            done.share_per_s * topic.readings, done.cpu_s / topic.readings * 1e6, topic.readings, drifts(settings)
        )

    return run


def peer(program: str, *options: str, python: Path = Path(sys.executable)) -> Run:
    def run(on: Rig, topic: Topic) -> Round:
        command = [str(python), "-W", "ignore", str(PEERS / f"{program}.py")]
        command += ["--bootstrap", on.bootstrap, "--topic", topic.settings.topic(ACTIVITY)]
        command += ["--group", f"{program}-{uuid.uuid4().hex[:8]}", "--channels", ",".join(CHANNELS)]
        command += ["--readings", str(topic.readings), *options]
        command += ["--batches"] if WORKLOADS[topic.workload] > 1 else []
        folder = on.home / "peers"
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with pinned(CONSUMERS):
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        try:
            out, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        if process.returncode != 0:
            raise RuntimeError(f"{program} ended with {process.returncode}:\n{errors[-2000:]}")
        return Round(**json.loads(out.splitlines()[-1]))

    return run


CONSUMERS_BY_NAME: dict[str, Run] = {
    "driftloop": driftloop("raw"),
    "driftloop-windowed": driftloop("confirmed"),
    "core": peer("core", "--tuned"),
    "confluent-tuned": peer("confluent_loop", "--tuned"),
    "confluent-loop": peer("confluent_loop"),
    "aiokafka": peer("aiokafka_getmany"),
    "bytewax": peer("bytewax_dataflow", python=PEERS_PYTHON),
    "quixstreams": peer("quix_dataframe", python=PEERS_PYTHON),
    "faust-stock": peer("faust_stream"),
}
OF_PEERS = ("bytewax", "quixstreams")
# What the agent is to be, as a multiple of the other's readings per second.
TARGETS = {
    "single": {"quixstreams": 3.0, "bytewax": 3.0, "confluent-tuned": 1.5, "core": 0.85},
    "batch50": {"confluent-loop": 2.0, "core": 0.85},
}


def found_by_river(recordings: list[Recording]) -> int:
    """Drifts of one ADWIN a device and channel, without Kafka or anything of ours."""
    columns = [CHANNEL_NAMES.index(name) for name in CHANNELS]
    found = 0
    for recording in recordings:
        for column in np.round(recording.values[:, columns], 6).T.tolist():
            detector = ADWIN()
            for value in column:
                detector.update(value)
                found += detector.drift_detected
    return found


def filled(on: Rig, name: str, workload: str, readings: int) -> Topic:
    """A topic of about so many readings."""
    recordings = simulate(DEVICES, readings / DEVICES / SAMPLE_RATE_HZ, 1, START_TS)
    settings = on.settings(name)
    messages = on.fill(settings, recordings, WORKLOADS[workload])
    topic = Topic(workload, settings, messages, sum(map(len, recordings)), found_by_river(recordings))
    say(f"{name}: {topic.readings:,} readings in {messages:,} messages, {topic.drifts:,} drifts")
    return topic


def measured(on: Rig, workload: str, names: list[str], readings: int, rounds: int) -> list[dict[str, object]]:
    """Rows of one workload: every consumer in every round, in turn forwards and backwards."""
    whole = filled(on, workload, workload, readings)
    shorter = min(readings, max(SHORTEST, readings // SHORTER))
    few = filled(on, f"{workload}-few", workload, shorter) if "faust-stock" in names else whole
    outcomes: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            outcome = CONSUMERS_BY_NAME[name](on, few if name == "faust-stock" else whole)
            outcomes[name].append(outcome)
            say(
                f"{workload} round {number + 1}: {name} {outcome.readings_per_s:,.0f}/s, "
                f"{outcome.cpu_s_per_million:.2f} CPU s a million, {outcome.drifts:,} drifts"
            )
    return [
        row(name, few if name == "faust-stock" else whole, outcomes[name])
        for name in CONSUMERS_BY_NAME
        if name in names
    ]


def row(name: str, topic: Topic, outcomes: list[Round]) -> dict[str, object]:
    speeds = [outcome.readings_per_s for outcome in outcomes]
    return {
        "name": name,
        "workload": topic.workload,
        "readings_per_s": round(statistics.median(speeds)),
        "min": round(min(speeds)),
        "max": round(max(speeds)),
        "cpu_s_per_million": statistics.median(outcome.cpu_s_per_million for outcome in outcomes),
        "readings": topic.readings,
        "drifts": outcomes[-1].drifts,
        # The windowed detector looks at something else.
        "drifts_agree": name == "driftloop-windowed" or all(outcome.drifts == topic.drifts for outcome in outcomes),
    }


def figures(rows: list[dict[str, object]]) -> dict[str, float]:
    """Whether all found the same, and the agent's speed as a multiple of each other's where there is a target."""
    made: dict[str, float] = {"disagreeing": float(sum(not each["drifts_agree"] for each in rows))}
    speed = {(each["workload"], each["name"]): float(str(each["readings_per_s"])) for each in rows}
    for (workload, name), own in speed.items():
        if name == "driftloop":
            for other in TARGETS[workload]:
                if (workload, other) in speed:
                    made[f"{workload}: driftloop / {other}"] = own / speed[workload, other]
        if name == "driftloop-windowed" and (workload, "driftloop") in speed:
            made[f"{workload}: driftloop-windowed / driftloop"] = own / speed[workload, "driftloop"]
    return made


def main() -> None:
    """Measure, say where drifts disagree, print ratios beside their targets."""
    arguments = parser(__doc__)
    arguments.add_argument("--readings", type=int, default=1_000_000, help="of each workload; default %(default)s")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", help=f"of {', '.join(CONSUMERS_BY_NAME)}; commas between")
    arguments.add_argument("--workload", choices=WORKLOADS, help="only this one")
    given = arguments.parse_args()
    names = given.only.split(",") if given.only else list(CONSUMERS_BY_NAME)
    if unknown := [name for name in names if name not in CONSUMERS_BY_NAME]:
        arguments.error(f"--only: no {', '.join(unknown)}; there are {', '.join(CONSUMERS_BY_NAME)}")
    if not PEERS_PYTHON.exists() and (without := [name for name in names if name in OF_PEERS]):
        if given.only:
            arguments.error(f"{', '.join(without)}: `make .venv-bench/stamp` first")
        say(f"without {', '.join(without)}: `make bench` makes their environment")
        names = [name for name in names if name not in without]
    rows = []
    with rig() as on:
        for workload in [given.workload] if given.workload else WORKLOADS:
            rows += measured(on, workload, names, given.readings, given.rounds)
    settings = {
        "readings": given.readings,
        "rounds": given.rounds,
        "channels": CHANNELS,
        "devices": DEVICES,
        "partitions": ACTIVITY.partitions,
        "pinned": bool(CONSUMERS),
        # Above 2 or 3 something else was running, and the figures are worth nothing.
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("confluent-kafka", "aiokafka", "faust-streaming", "river")},
    }
    show(Measurement("throughput", settings, figures(rows), rows), given.json)
    for each in rows:
        if not each["drifts_agree"]:
            say(f"{each['workload']}: {each['name']} found {each['drifts']} drifts, river by itself found others")


if __name__ == "__main__":
    main()
