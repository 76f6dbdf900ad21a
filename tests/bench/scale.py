"""How the agent's cost grows with devices, and what a second agent adds: speed, memory, saved state, takeover.

Devices are simulated people who send batches; each row is a topic of its own that the agents work off from its
beginning. `recovery_s` is from `kill -9` to the first newly committed record: starting, waiting for the dead member's
session to end, reading the state back, the first checkpoint; readings wait there. `checkpoint_bytes_per_s` is the
growth of the state's changelog on the broker's disk at that speed; `…_per_reading` compares rows of different speed.
Two agents share the core of the first with the broker's, as there are cores.
"""

from __future__ import annotations

import time
from dataclasses import replace

from schemas.topology import AGENT_STATE
from streams import topics
from streams.producer import messages
from streams.recording import Recording
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.bench.rig import (
    ALL_CORES,
    CONSUMERS,
    OTHERS,
    START_TS,
    Commits,
    Rig,
    agents,
    catch_up,
    pinned,
    rig,
    say,
    send,
    state_sizes,
    wait_until,
)

PEOPLE = 100  # simulated; more devices than that repeat them
MORE_S = 1.0  # of each device's readings are sent after the kill


def crowd(devices: int, seconds: float) -> list[Recording]:
    """So many devices, of at most PEOPLE different people."""
    people = simulate(min(devices, PEOPLE), seconds, 1, START_TS)
    return [replace(people[number % len(people)], device=f"phone-{number:05d}") for number in range(devices)]


def measure(
    on: Rig, devices: int, count: int, readings: int, seconds: float, batch: int, detector: str
) -> dict[str, object]:
    """One row: so many devices on so many agents."""
    settings = on.settings(f"devices{devices}x{count}", detector=detector)
    whole = crowd(devices, max(seconds, readings / devices / 50) + MORE_S)
    before = [recording.chosen(slice(0, -round(MORE_S * 50))) for recording in whole]
    total = sum(map(len, before))
    topics.create(settings)
    outgoing = list(messages(before, batch))
    say(f"{devices} devices, {count} agents: {total:,} readings in {len(outgoing):,} messages")
    commits = Commits(settings)
    if count == 1:
        send(settings, before, outgoing)
    with agents(settings, count, ALL_CORES if count > 1 else CONSUMERS) as running:
        if count > 1:  # the first one would have all partitions, and be done, before the second is there
            wait_until(lambda: all(agent.ready for agent in running), 120, "ready", running)
            for agent in running:
                agent.seen.suspend()
            send(settings, before, outgoing)
            for agent in running:
                agent.seen.resume()
        with pinned(OTHERS):
            done = catch_up(commits, running)
        grown = on.bytes_of(settings, AGENT_STATE)
        rss = max(agent.rss_mb for agent in running)
        at, began = commits.committed(), time.perf_counter()
        for agent in running:
            agent.kill()
    with agents(settings, count, ALL_CORES if count > 1 else CONSUMERS) as running, pinned(OTHERS):
        after = [recording.chosen(slice(-round(MORE_S * 50), None)) for recording in whole]
        send(settings, after, messages(after, batch))
        wait_until(lambda: commits.committed() > at, 120, "the first commit after kill -9", running)
        recovery = time.perf_counter() - began
        rss_after = max(agent.rss_mb for agent in running)
    sizes = state_sizes(settings)
    commits.close()
    return {
        "devices": devices,
        "agents": count,
        "readings_per_s": round(done.share_per_s * total),
        "cpu_s_per_million": done.cpu_s / total * 1e6,
        "rss_mb": round(rss),
        "rss_recovered_mb": round(rss_after),
        "state_bytes_per_device": round(sum(sizes.values()) / max(len(sizes), 1)),
        "checkpoint_bytes_per_s": round(grown / done.seconds),
        "checkpoint_bytes_per_reading": grown / total,
        "recovery_s": recovery,
    }


def main() -> None:
    """Measure one agent for each number of devices, then two for the middle one."""
    arguments = parser(__doc__)
    arguments.add_argument("--devices", default="10,1000,10000", help="commas between; default %(default)s")
    arguments.add_argument("--readings", type=int, default=500_000, help="at least, of each row; default %(default)s")
    arguments.add_argument("--seconds", type=float, default=10.0, help="at least, of each device; default %(default)s")
    arguments.add_argument("--batch", type=int, default=50, help="readings a message; default %(default)s")
    arguments.add_argument("--detector", default="confirmed", help="default %(default)s")
    given = arguments.parse_args()
    devices = [int(number) for number in given.devices.split(",")]
    rows = []
    with rig() as on:
        for number, count in [*((number, 1) for number in devices), (devices[len(devices) // 2], 2)]:
            rows.append(measure(on, number, count, given.readings, given.seconds, given.batch, given.detector))
            say(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    alone = next(row for row in rows if row["devices"] == rows[-1]["devices"])
    figures = {
        "two agents / one": float(str(rows[-1]["readings_per_s"])) / max(1.0, float(str(alone["readings_per_s"])))
    }
    settings = {name: getattr(given, name) for name in ("readings", "seconds", "batch", "detector")}
    show(Measurement("scale", settings, figures, rows), given.json)


if __name__ == "__main__":
    main()
