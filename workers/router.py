"""`driftloop run router`: the stable address, following the `current-model` topic."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal

import structlog

from deploy.router import Router, listen
from schemas.errors import UserError
from schemas.events import ModelDeployed
from schemas.settings import Settings
from streams.current_model import CurrentModel
from streams.kafka import client_config
from workers.startup import begin

log = structlog.get_logger()

# A request under way holds two of them, and clients keep theirs open between two requests.
_OPEN_FILES = 8192


def run(settings: Settings) -> None:
    """Run until SIGTERM. It serves its last known route whether or not Kafka is there."""
    if settings.router_port == 0:
        raise UserError("the router needs a port to keep: set DRIFTLOOP_ROUTER_PORT")
    client_config(settings)  # says in one line that no Kafka is known; a broker that is away is another matter
    health = begin("router", settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, wanted), most))
    router = Router(settings.home / "route.json")

    def switch(deployed: ModelDeployed | None) -> None:
        try:
            if deployed is None:
                router.switch(None, None)
            else:
                router.switch(deployed.endpoint, deployed.version)
        except (ValueError, OSError) as error:
            log.warning("router.refused", error=str(error))

    current = CurrentModel(settings, switch).start()
    health.doing = "routing"
    health.ready = lambda: router.route.endpoint is not None

    async def serve() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        try:
            runner = await listen(router.application(), settings.router_host, settings.router_port)
        except OSError as error:
            raise UserError(
                f"{settings.router_url}: {error.strerror}; free the port or set DRIFTLOOP_ROUTER_PORT"
            ) from error
        log.info("router.listening", address=settings.router_url)
        while not stopping.is_set():
            health.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 5)
        await runner.cleanup()

    asyncio.run(serve())
    current.stop()
