"""Milliseconds from producing a reading to receiving the drift event that it set off, at a steady rate in real time.

Each channel of each device jumps between two levels, at its own moments, so that `raw` mode alarms all the time. A
drift event names the record that completed it (`position`); its latency is the time at which a subscriber has the event
minus the time at which that record was handed to a producer without linger. Alarms of the first seconds do not count.
"""

from __future__ import annotations

import threading
import time
from itertools import islice

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.activity import CHANNEL_NAMES, SAMPLE_RATE_HZ
from schemas.topology import ACTIVITY, DRIFT
from streams import topics
from streams.adwin import RawDetector
from streams.kafka import client_config, reader_config
from streams.producer import messages
from streams.recording import Person, Recording
from tests.bench.report import Measurement, parser, show
from tests.bench.rig import OTHERS, Commits, Rig, agents, pinned, rig, say, wait_until

DEVICES = 24
PERIOD = 400  # readings between two jumps of one channel
WARM_UP_S = 3.0


def jumping(device: int, readings: int, ts: float) -> Recording:
    """Small noise around levels that jump every PERIOD readings, each channel and device at its own moment."""
    rng = np.random.default_rng(device)
    values = rng.normal(0.0, 0.05, (readings, len(CHANNEL_NAMES)))
    watched = [CHANNEL_NAMES.index(feature) for feature, _ in RawDetector().names]
    for column in watched:
        values[:, column] += (np.arange(readings) + rng.integers(PERIOD)) // PERIOD % 2
    return Recording(
        f"phone-{device:02d}",
        Person(f"synthetic-{device:02d}"),
        ts + np.arange(readings) / SAMPLE_RATE_HZ,
        values,
        np.full(readings, 4),
        np.ones(readings, np.int64),
    )


class Subscriber(threading.Thread):
    """Receives drift events as anybody would. arrived: partition and offset of the reading, time of arrival."""

    def __init__(self, settings) -> None:
        super().__init__(daemon=True)
        self.arrived: list[tuple[int, int, float]] = []
        self.done = threading.Event()
        self.consumer = Consumer(reader_config(settings, **{"fetch.wait.max.ms": 100, "auto.offset.reset": "earliest"}))
        self.consumer.assign([TopicPartition(settings.topic(DRIFT), 0, 0)])

    def run(self) -> None:
        while not self.done.is_set():
            message = self.consumer.poll(0.2)
            if message is not None and message.error() is None:
                now = time.monotonic()
                position = msgspec.json.decode(message.value())["position"]
                self.arrived.append((position["partition"], position["offset"], now))
        self.consumer.close()


def measure(on: Rig, rate: int, seconds: float) -> dict[str, object]:
    """One row: an offered rate in readings a second."""
    settings = on.settings(f"rate{rate}", detector="raw")
    topics.create(settings)
    recordings = [jumping(number, int(rate * seconds / DEVICES) + 1, time.time()) for number in range(1, DEVICES + 1)]
    planned = list(islice(messages(recordings), int(rate * seconds)))
    partition_of = {recording.device.encode(): n % ACTIVITY.partitions for n, recording in enumerate(recordings)}
    topic = settings.topic(ACTIVITY)
    sent: list[list[float]] = [[] for _ in range(ACTIVITY.partitions)]  # by offset: nobody else writes there
    producer = Producer(client_config(settings, **{"linger.ms": 0, "acks": "all", "enable.idempotence": True}))
    producer.list_topics(topic, timeout=10)
    with pinned(OTHERS):
        subscriber = Subscriber(settings)
        subscriber.start()
    with agents(settings) as running, pinned(OTHERS):
        wait_until(lambda: running[0].ready, 120, "ready", running)
        began, spent, late = time.monotonic(), running[0].cpu_s, 0.0
        for number, (key, value) in enumerate(planned):
            due = began + number / rate
            while (now := time.monotonic()) < due:
                producer.poll(0)
                time.sleep(min(due - now, 0.001))
            late = max(late, now - due)
            partition = partition_of[key]
            sent[partition].append(now)
            producer.produce(topic, value, key, partition=partition)
            producer.poll(0)  # what was delivered leaves its queue
        busy = (running[0].cpu_s - spent) / (time.monotonic() - began)
        assert producer.flush(30) == 0
        # An agent that falls behind is slow, not blind: its late drifts count.
        commits = Commits(settings)
        commits.until(1.0, 300, running)
        commits.close()
        time.sleep(1)
    subscriber.done.set()
    subscriber.join()
    latencies = [
        (arrival - sent[partition][offset]) * 1000
        for partition, offset, arrival in subscriber.arrived
        if sent[partition][offset] > began + WARM_UP_S
    ]
    p50, p90, p99, most = np.percentile(latencies, [50, 90, 99, 100]) if latencies else [float("nan")] * 4
    return {
        "offered_per_s": rate,
        "readings": len(planned),
        "drifts": len(latencies),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "max_ms": float(most),
        "agent_cores": busy,
        "producer_late_ms": late * 1000,
    }


def main() -> None:
    """Measure each rate on a fresh set of topics."""
    arguments = parser(__doc__)
    arguments.add_argument("--rates", default="500,5000", help="readings a second, commas between; default %(default)s")
    arguments.add_argument("--seconds", type=float, default=40.0, help="of each rate; default %(default)s")
    given = arguments.parse_args()
    rows = []
    with rig() as on:
        for rate in map(int, given.rates.split(",")):
            rows.append(measure(on, rate, given.seconds))
            say(f"{rate}/s: {rows[-1]['drifts']} drifts, p50 {rows[-1]['p50_ms']:.1f} ms")
    figures = {f"p{p} at {row['offered_per_s']}/s": row[f"p{p}_ms"] for row in rows for p in (50, 99)}
    settings = {"seconds": given.seconds, "devices": DEVICES, "period": PERIOD, "warm_up_s": WARM_UP_S}
    show(Measurement("latency", settings, figures, rows), given.json)


if __name__ == "__main__":
    main()
