"""What the programs that disturb a deployment share: servers, versions that are announced, and a client that asks."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import trustme

from deploy.local.stack import Stack
from schemas.envelope import envelope
from schemas.events import DecisionMade, ModelDeployed
from schemas.settings import Settings
from schemas.topology import DECISIONS, DEPLOYED, MODEL_REGISTERED
from streams import topics
from tests import engine as engines
from tests.integration import worker_processes as workers


@contextmanager
def world(folder: Path, addresses: dict[str, str] | None = None, **fields: Any) -> Iterator[Settings]:
    """Settings with topics and a model of their own, on the servers at `addresses`, or on new ones."""
    with ExitStack() as left:
        if addresses is None:
            stack = Stack(folder / "stack", Settings(_env_file=None))
            left.callback(stack.down)
            addresses = stack.up([], services={"kafka", "mlflow"})
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            namespace=f"k{uuid.uuid4().hex[:6]}.",
            model=f"m{uuid.uuid4().hex[:8]}",
            kafka_bootstrap=addresses["DRIFTLOOP_KAFKA_BOOTSTRAP"],
            mlflow_tracking_uri=addresses["MLFLOW_TRACKING_URI"],
            **{"grace_seconds": 0.5} | fields,
        )
        topics.create(settings)
        yield settings


@contextmanager
def engine_and_registry(folder: Path, *, login: bool = False) -> Iterator[tuple[Any, dict[str, Any], dict[str, str]]]:
    """The tests' Docker engine and a registry with TLS: the engine's client, settings, and what they cannot say."""
    with engines.engine() as engine:
        authority = trustme.CA()
        folder.mkdir(parents=True, exist_ok=True)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        data = engines.HOME / "registry"
        with engines.registry(folder / "registry", login=login, ca=authority, data=data) as address:
            fields = {
                "target": "docker",
                "base_image": engines.BASE,
                "image_repository": f"{address}/driftloop/models",
                "registry_ca": folder / "ca.pem",
            }
            if login:
                known = {"registry_auth": "basic", "registry_username": engines.USER}
                fields |= known | {"registry_password": engines.PASSWORD}
            yield engine, fields, {"DOCKER_HOST": f"unix://{engines.HOME}/docker.sock"}


def announce(settings: Settings, number: int) -> str:
    """The version that was registered and announced."""
    registered = workers.registered_version(settings, f"event-{number}", seed=number)
    told = envelope(registered, id=f"registered-{number}", source="chaos", subject="", time=1.0)
    workers.send(settings, MODEL_REGISTERED, told)
    return registered.version


def deployed(settings: Settings) -> list[str]:
    """All versions that were ever announced as deployed, oldest first."""
    return [each.version for each in workers.of_type(workers.events(settings, DEPLOYED), ModelDeployed)]


def decided(settings: Settings, count: int) -> DecisionMade | None:
    """The last of so many decisions."""
    found = workers.of_type(workers.events(settings, DECISIONS), DecisionMade)
    return found[count - 1] if len(found) >= count else None


class Client:
    """Asks until it is left; answers: (seconds since the epoch, status or 0, version).

    expected: the version that is asked now, and whose answer is missing if there is none.
    """

    def __init__(
        self,
        url: str,
        body: str | None = None,
        *,
        pause: float = 0.1,
        seconds: float = 15.0,
        expected: Callable[[], str] = str,
    ) -> None:
        self.url = url
        self.body = body
        self.pause = pause
        self.seconds = seconds
        self.expected = expected
        self.answers: list[tuple[float, int, str]] = []
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        method = "GET" if self.body is None else "POST"
        with httpx.Client(timeout=self.seconds, trust_env=False) as client:
            while not self.left.wait(self.pause):
                asked = self.expected()
                try:
                    reply = client.request(method, self.url, content=self.body)
                    self.answers.append((time.time(), reply.status_code, reply.headers.get("x-driftloop-version", "")))
                except httpx.HTTPError:
                    self.answers.append((time.time(), 0, asked))

    def __enter__(self) -> Client:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.join(20)
