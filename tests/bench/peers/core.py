"""Driftloop's core fed by a confluent-kafka consumer: the agent without Faust, effects and commits."""

import gc

from confluent_kafka import Consumer, Message
from work import Meter, arguments, librdkafka

from streams.detectors import DETECTORS
from streams.processor import Processor
from streams.records import Chunk

gc.set_threshold(50_000, *gc.get_threshold()[1:])  # as the agent does
given = arguments()
drifts = 0
meter = Meter(given.readings, lambda: drifts)
consumer = Consumer(librdkafka(given))
consumer.subscribe([given.topic])
processors: dict[int, Processor] = {}
while True:
    by_partition: dict[int, list[Message]] = {}
    for message in consumer.consume(2000, 0.1):
        if message.error() is None:
            by_partition.setdefault(message.partition(), []).append(message)
    for partition, messages in by_partition.items():
        if partition not in processors:
            processors[partition] = Processor(
                given.topic, partition, model="activity", load=lambda _: None, fresh=DETECTORS["raw"]
            )
        chunk = Chunk(
            messages[0].offset(),
            messages[-1].offset() + 1,
            [message.offset() for message in messages],
            [message.timestamp()[1] for message in messages],
            [message.key() for message in messages],
            [message.value() for message in messages],
            [()] * len(messages),
        )
        outcome = processors[partition].process(chunk)
        drifts += len(outcome.drifts)
        meter.count(outcome.readings)
