"""`driftloop run monitor`: watches lag, events, devices, models, processes; shows them as page, `/api`, `/metrics`.

It joins no group and changes nothing. While the broker is away it stays up and says that nothing is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import structlog
from aiohttp import web

from schemas.errors import UserError
from schemas.settings import Settings
from streams.kafka import client_config
from workers.history import History
from workers.seen import NOT_LOOKED, Seen
from workers.startup import begin
from workers.watching import Watching
from workers.web import STOPPING, Page, check, tls

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Run until SIGTERM."""
    if settings.monitor_port == 0:
        raise UserError("the page needs a port to keep: set DRIFTLOOP_MONITOR_PORT")
    client_config(settings)  # says in one line that no Kafka is known; a broker that is away is another matter
    check(settings)
    context = tls(settings)
    health = begin("monitor", settings)
    seen = Seen()
    history = History(settings.home / "monitor" / f"{settings.namespace}history.sqlite", settings.monitor_history_days)

    async def serve() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        page = Page(settings, seen, history, health)
        app = page.application()
        app[STOPPING] = stopping
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, settings.monitor_host, settings.monitor_port, ssl_context=context).start()
        except OSError as error:
            raise UserError(
                f"{settings.monitor_url}: {error.strerror}; free the port or set DRIFTLOOP_MONITOR_PORT"
            ) from error

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(page.tell)

        watching = Watching(settings, seen, history, tell)
        watching.start()
        health.doing = "watching"
        health.ready = lambda: seen.kafka.trouble != NOT_LOOKED
        log.info("monitor.listening", address=settings.monitor_url)
        while not stopping.is_set():
            if time.monotonic() - watching.turned < 60:
                health.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 2)
        page.tell()
        await runner.cleanup()
        watching.stop()

    asyncio.run(serve())
    history.close()
