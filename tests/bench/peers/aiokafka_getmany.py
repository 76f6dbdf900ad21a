"""aiokafka's `getmany` in a loop."""

import asyncio

from aiokafka import AIOKafkaConsumer
from work import Work, arguments


async def main() -> None:
    given = arguments()
    work = Work(given)
    consumer = AIOKafkaConsumer(
        given.topic, bootstrap_servers=given.bootstrap, group_id=given.group, auto_offset_reset="earliest"
    )
    await consumer.start()
    while True:
        for messages in (await consumer.getmany(timeout_ms=1000, max_records=5000)).values():
            for message in messages:
                work.take(message.value)


asyncio.run(main())
