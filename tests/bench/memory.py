"""The agent's memory: over many readings, and while it cannot follow, when back-pressure has to bound what it holds.

`steady`: an agent works off batches of 50, memory at each tenth. `slow`: one whose core sleeps at every call, with more
single readings before it than it should hold; what it has beyond an agent with nothing to do is its backlog. Many
readings by hand: `--readings 10000000`.
"""

from __future__ import annotations

import time

from schemas.activity import SAMPLE_RATE_HZ
from schemas.topology import ACTIVITY
from streams.recording import Recording
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.bench.rig import OTHERS, START_TS, Commits, agents, pinned, rig, say, wait_until

DEVICES = 24
SLOWED = ("-m", "tests.bench.agents.slowed", "run", "agent")


def crowd(readings: int) -> list[Recording]:
    return simulate(DEVICES, readings / DEVICES / SAMPLE_RATE_HZ, 1, START_TS)


def main() -> None:
    """Two topics, an agent on each."""
    arguments = parser(__doc__)
    arguments.add_argument("--readings", type=int, default=1_000_000)
    arguments.add_argument(
        "--slow-readings", type=int, default=500_000, help="before the slow one; default %(default)s"
    )
    arguments.add_argument("--detector", default="confirmed", help="default %(default)s")
    arguments.add_argument("--slow-seconds", type=float, default=30.0, help="how long the slow one is watched")
    arguments.add_argument("--pause", type=float, default=0.5, help="seconds that each call of its core sleeps")
    given = arguments.parse_args()
    rows: list[dict[str, object]] = []
    figures: dict[str, float] = {}
    with rig() as on:
        settings = on.settings("memory", detector=given.detector)
        sent = on.fill(settings, crowd(given.readings), 50)
        say(f"{given.readings:,} readings in {sent:,} messages")
        commits = Commits(settings)
        with agents(settings) as running, pinned(OTHERS):
            (agent,) = running
            wait_until(lambda: agent.ready, 120, "ready", running)
            figures["ready_mb"] = agent.rss_mb
            for tenth in range(1, 11):
                commits.until(tenth / 10, 900, running)
                rows.append({"agent": "steady", "readings": given.readings * tenth // 10, "rss_mb": agent.rss_mb})
                say(f"{tenth * 10} %: {agent.rss_mb:.0f} MB")
        figures["grown_from_half_to_end_mb"] = rows[9]["rss_mb"] - rows[4]["rss_mb"]
        commits.close()
        settings = on.settings("slow", detector=given.detector)
        sent = on.fill(settings, crowd(given.slow_readings))
        figures["slow_topic_mb"] = on.bytes_of(settings, ACTIVITY) / 1e6
        commits = Commits(settings)
        with agents(settings, program=SLOWED, BENCH_PAUSE_S=str(given.pause)) as running, pinned(OTHERS):
            (agent,) = running
            wait_until(lambda: agent.ready, 120, "ready", running)
            began, peak = time.monotonic(), 0.0
            for tenth in range(1, 11):
                while time.monotonic() - began < given.slow_seconds * tenth / 10:
                    peak = max(peak, agent.rss_mb)
                    time.sleep(0.05)
                done = commits.committed()
                rows.append({"agent": "slow", "readings": done, "rss_mb": agent.rss_mb})
            figures["slow_peak_mb"] = peak
            figures["slow_backlog_mb"] = peak - figures["ready_mb"]
            figures["slow_left_on_topic"] = sent - done
            for each in running:
                each.kill()  # it would take its time
        commits.close()
    named = {name: getattr(given, name) for name in ("readings", "detector", "slow_readings", "slow_seconds", "pause")}
    show(Measurement("memory", named, figures, rows), given.json)


if __name__ == "__main__":
    main()
