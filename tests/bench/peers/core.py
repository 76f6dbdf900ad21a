"""Driftloop's core fed by a confluent-kafka consumer: the agent without Faust, effects and commits."""

from confluent_kafka import Consumer
from work import Meter, arguments, librdkafka

from streams.detectors import DETECTORS
from streams.gate import Record
from streams.processor import Processor

given = arguments()
drifts = 0
meter = Meter(given.readings, lambda: drifts)
consumer = Consumer(librdkafka(given))
consumer.subscribe([given.topic])
processors: dict[int, Processor] = {}
while True:
    runs: dict[int, list[Record]] = {}
    for message in consumer.consume(2000, 0.1):
        if message.error() is None:
            record = Record(message.offset(), message.timestamp()[1] / 1000, message.key(), message.value())
            runs.setdefault(message.partition(), []).append(record)
    for partition, records in runs.items():
        if partition not in processors:
            processors[partition] = Processor(
                given.topic, partition, model="activity", load=lambda _: None, fresh=DETECTORS["raw"]
            )
        outcome = processors[partition].process(records)
        drifts += len(outcome.drifts)
        meter.count(outcome.readings)
