"""A router and a client in processes of their own, for measurements: neither may wait for the other, nor for us."""

import asyncio
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from deploy.router import Router, listen


def route(file: str, orders: Connection) -> None:
    """The router, in a process of its own as in the stack; an order is an endpoint and a version."""

    async def serve() -> None:
        router = Router(Path(file))
        runner = await listen(router.application(), "127.0.0.1", 0)
        orders.send(runner.addresses[0][1])
        loop = asyncio.get_running_loop()
        while (order := await loop.run_in_executor(None, orders.recv)) is not None:
            await loop.run_in_executor(
                None, router.switch, *order
            )  # from another thread, as in the stack: it syncs a file
            orders.send(True)
        await runner.cleanup()

    asyncio.run(serve())


def load(url: str, body: bytes, rate: float, orders: Connection) -> None:
    """Requests at the rate until an order comes; sends (seconds since the epoch, milliseconds, status) of each."""

    async def send() -> None:
        asked: list[tuple[float, float, int]] = []

        async def one(session: aiohttp.ClientSession, due: float) -> None:
            when, began = time.time(), due
            try:
                async with session.post(url, data=body, headers={"content-type": "application/json"}) as reply:
                    await reply.read()
                    status = reply.status
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            asked.append((when, (time.perf_counter() - began) * 1000, status))

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
            tasks: set[asyncio.Task[None]] = set()
            orders.send(True)
            due = time.perf_counter()
            while not orders.poll():
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                # From when it should have been sent: a client that is late does not make the server look fast.
                task = asyncio.create_task(one(session, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        orders.send(asked)

    asyncio.run(send())
