"""What malformed messages cost: good readings a second without any and with a tenth of them, side by side.

Through the agent's core alone, in chunks, and through a running agent on the embedded Kafka (`--live`).
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import psutil
from confluent_kafka import Producer

from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams import topics
from streams.kafka import producer_config
from streams.producer import messages
from streams.records import Record
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.chaos import corpus
from tests.chaos.broker import Broker
from tests.chaos.core import Core
from tests.chaos.corpus import DUPLICATE, VALID, cases
from tests.chaos.judge import Group
from tests.integration.agent_process import Agent

CHUNK = 5_000  # records
DEVICES = 24
MOST_BYTES = 4_096  # what is larger costs by its size, good or bad

Message = tuple[bytes | None, bytes | None]


def mixed(readings: int, percent: int, batch: int) -> Iterator[Message]:
    """So many good readings, and so many percent of all messages malformed, evenly spread over the same devices."""
    bad = cycle(
        (case.key, case.value, f"case-{number:04}".encode())
        for number, case in enumerate(cases())
        if case.expected not in (VALID, DUPLICATE) and case.before is None and len(case.value or b"") < MOST_BYTES
    )
    owed = 0.0
    for message in messages(simulate(DEVICES, readings / DEVICES / 50, 1, corpus.NOW), batch):
        yield message
        owed += percent / (100 - percent)
        while owed >= 1:
            owed -= 1
            key, value, device = next(bad)
            assert message[0] is not None
            yield message[0] if key == device else key, value and value.replace(device, message[0])


def core(settings: Settings, readings: int, percent: int, batch: int) -> tuple[float, float]:
    """Good readings a second of CPU time, and CPU seconds for a million of them."""
    records = [Record(number, corpus.NOW, *message) for number, message in enumerate(mixed(readings, percent, batch))]
    watched = Core(settings, 0)
    begun, good = time.process_time(), 0
    for start in range(0, len(records), CHUNK):
        good += watched.process(records[start : start + CHUNK]).readings
    spent = time.process_time() - begun
    return good / spent, spent / good * 1e6


def live(settings: Settings, readings: int, percent: int, batch: int, folder: Path) -> tuple[float, float]:
    """Good readings a second, from the first commit to the last, and CPU seconds for a million of them."""
    settings = settings.model_copy(
        update={"namespace": f"p{percent}b{batch}n{time.monotonic_ns() % 10**9}.", "home": folder / "agent"}
    )
    topics.create(settings)
    producer = Producer(producer_config(settings, **{"queue.buffering.max.messages": 2_000_000}))
    for key, value in mixed(readings, percent, batch):
        producer.produce(settings.topic(ACTIVITY), key=key, value=value)
        producer.poll(0)
    assert producer.flush(120) == 0
    group = Group(settings)
    ends = group.ends()
    assert ends is not None
    agent = Agent(settings)
    watched = psutil.Process(agent.process.pid)
    try:
        first: tuple[float, float, int] | None = None
        while True:
            committed = group.committed() or {}
            done, now, cpu = sum(committed.values()), time.monotonic(), sum(watched.cpu_times()[:2])
            if done and first is None:
                first = now, cpu, done
            if committed == ends:
                break
            time.sleep(0.02)
        assert first is not None
        share = 1 - first[2] / sum(ends.values())
        return readings * share / (now - first[0]), (cpu - first[1]) / (readings * share) * 1e6
    finally:
        agent.terminate()


def main() -> None:
    """Alternating rounds, medians."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--readings", type=int, default=200_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--percent", type=int, default=10)
    arguments.add_argument("--live", action="store_true")
    arguments.add_argument("--detector", default="confirmed")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else broker and agent would stay
    settings = Settings(_env_file=None, detector=given.detector)
    # Kafka stamps records with its own clock: times that the corpus means to be far ahead of it would be good ones.
    corpus.NOW = float(int(time.time()))
    shares = (0, given.percent)
    rows = []
    for batch in (1, 50):
        found: dict[int, list[tuple[float, float]]] = {share: [] for share in shares}
        for number in range(given.rounds):
            for share in shares if number % 2 else reversed(shares):
                found[share].append(core(settings, given.readings // 2, share, batch))
        rows += [_row("core", batch, share, found) for share in shares]
    if given.live:
        with tempfile.TemporaryDirectory() as folder:
            broker = Broker(Path(folder) / "stack")
            broker.start()
            try:
                broker.answers()
                on = settings.model_copy(update={"kafka_bootstrap": broker.address})
                for batch in (1, 50):
                    found = {share: [] for share in shares}
                    for number in range(given.rounds):
                        for share in shares if number % 2 else reversed(shares):
                            many = given.readings * (5 if batch > 1 else 1)
                            found[share].append(live(on, many, share, batch, Path(folder)))
                    rows += [_row("live", batch, share, found) for share in shares]
            finally:
                broker.kill()
    figures = {
        f"{row['where']}_cost_percent_batch{row['batch']}": row["cost_percent"] for row in rows if row["bad_percent"]
    }
    chosen = {name: getattr(given, name) for name in ("readings", "rounds", "percent", "detector")}
    show(Measurement("poison", chosen, figures, rows), given.json)


def _row(where: str, batch: int, share: int, found: dict[int, list[tuple[float, float]]]) -> dict[str, object]:
    rates, spent = zip(*found[share], strict=True)
    without = statistics.median(rate for rate, _ in found[0])
    return {
        "where": where,
        "batch": batch,
        "bad_percent": share,
        "good_readings_per_s": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "cpu_s_per_million": statistics.median(spent),
        "cost_percent": (1 - statistics.median(rates) / without) * 100,
    }


if __name__ == "__main__":
    main()
