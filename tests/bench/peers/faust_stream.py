"""Faust as its documentation has it: one agent, one event a message."""

import asyncio

import faust
from work import Work, arguments


async def main() -> None:
    given = arguments()
    work = Work(given)
    app = faust.App(
        given.group,
        broker=f"kafka://{given.bootstrap}",
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        web_enabled=False,
    )
    topic = app.topic(given.topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    async def watch(stream) -> None:
        async for value in stream:
            work.take(value)

    app.agent(topic, name="watch")(watch)
    await app.start()
    await asyncio.Event().wait()


asyncio.run(main())
