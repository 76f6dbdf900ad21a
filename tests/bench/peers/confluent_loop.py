"""confluent-kafka's `consume(1000)` in a loop."""

from confluent_kafka import Consumer
from work import Work, arguments, librdkafka

given = arguments()
work = Work(given)
consumer = Consumer(librdkafka(given))
consumer.subscribe([given.topic])
while True:
    for message in consumer.consume(1000, 0.1):
        if message.error() is None:
            work.take(message.value())
