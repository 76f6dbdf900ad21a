"""What looking costs: the lag collector at 1,000 group partitions, and the statistics that are shown of devices."""

import os
import time
import uuid
from dataclasses import replace

import numpy as np
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.settings import load_settings
from streams.detectors import DETECTORS
from streams.devicestats import DeviceStatistics, encode
from streams.lag import LagTracker
from streams.lag_collector import Collector, RecordTimes
from streams.processor import Processor
from streams.producer import messages
from streams.records import Record, chunk_of
from streams.simulator import simulate
from streams.windows import Readings, cut
from tests.bench.report import Measurement, parser, show

PARTITIONS = 4


def collector(groups: int, rounds: int) -> dict[str, float]:
    """CPU and wall seconds of a round, times of records included, on the Kafka of the settings or of a stack."""
    settings = load_settings()
    name = f"bench-{uuid.uuid4().hex[:6]}"
    config = {"bootstrap.servers": settings.kafka_bootstrap}
    admin = AdminClient(config)
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result()
    producer = Producer(config)
    for number in range(4_000):
        producer.produce(name, b"x" * 100, partition=number % PARTITIONS)
    producer.flush()
    named = [f"{name}-{number:04}" for number in range(groups)]
    for index, group in enumerate(named):
        places = [TopicPartition(name, number, (index * 7 + number) % 1_000) for number in range(PARTITIONS)]
        wanted = ConsumerGroupTopicPartitions(group, places)
        admin.alter_consumer_group_offsets([wanted])[group].result()
    look_at, tracker, times = Collector(settings, f"^{name}-"), LagTracker(), RecordTimes(settings)
    cpu, wall, rows = [], [], 0
    for _ in range(rounds):
        begun, spent = time.monotonic(), time.process_time()
        look = look_at.look()
        rows = len(tracker.take(look, times.of(look)))
        cpu.append(time.process_time() - spent)
        wall.append(time.monotonic() - begun)
    times.close()
    for group in named:
        admin.delete_consumer_groups([group])[group].result()
    admin.delete_topics([name])[name].result()
    return {
        "partitions": float(rows),
        "cpu_s_a_round": float(np.median(cpu)),
        "cpu_s_worst_round": max(cpu),
        "wall_s_a_round": float(np.median(wall)),
    }


def statistics() -> dict[str, float]:
    """Share of the agent's core that showing every device would add: batches of 50, runs of 1,000 records."""
    recordings = simulate(4, 600, 1, 1.7e9)
    records = [Record(offset, None, key, value) for offset, (key, value) in enumerate(messages(recordings, 50))]
    spent = []
    for _ in range(3):
        processor = Processor("activity", 0, model="m", load=lambda _: None, fresh=DETECTORS["confirmed"])
        begun = time.process_time()
        for start in range(0, len(records), 1_000):
            processor.process(chunk_of(records[start : start + 1_000]))
        spent.append(time.process_time() - begun)
    shown_cpu, size = [], 0
    for _ in range(3):
        shown, size, total = DeviceStatistics(50), 0, 0.0
        for recording in recordings:
            taken = Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording)))
            windows, _rest = cut(taken)
            windows = replace(windows, measures=DETECTORS["confirmed"].measure(windows.values))
            for start in range(0, len(windows), 40):  # as many as come together at full speed
                part = windows.chosen(slice(start, start + 40))
                begun = time.process_time()
                told = shown.of(recording.device, part)
                size += len(encode(told)[1]) if told else 0
                total += time.process_time() - begun
        shown_cpu.append(total)
    return {
        "core_cpu_s": min(spent),
        "statistics_cpu_s": min(shown_cpu),
        "statistics_share_percent": 100 * min(shown_cpu) / min(spent),
        "statistics_bytes_a_device_minute": size / len(recordings) / 10,
    }


def main() -> None:
    """Measure both."""
    arguments = parser(__doc__)
    arguments.add_argument("--groups", type=int, default=250)
    arguments.add_argument("--rounds", type=int, default=8)
    given = arguments.parse_args()
    figures = statistics()
    if load_settings().kafka_bootstrap is None:
        print(
            "no Kafka is known: the collector is not measured (DRIFTLOOP_KAFKA_BOOTSTRAP, or DRIFTLOOP_HOME of a stack)"
        )
    else:
        figures |= collector(given.groups, given.rounds)
    settings = {"groups": given.groups, "partitions_a_group": PARTITIONS, "load": os.getloadavg()[0]}
    show(Measurement("monitor", settings, figures), given.json)


if __name__ == "__main__":
    main()
