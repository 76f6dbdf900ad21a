"""What tests share: one real Kafka and one MLflow for the whole session, started when the first test asks for them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from schemas.settings import Settings


class Servers:
    """The session's stack without workers. Each server starts when first asked for; the other is not waited for."""

    def __init__(self, home: Path) -> None:
        # The user's own servers, if the environment names them, are used as the stack itself would.
        self.stack = Stack(home, Settings(_env_file=None))
        self._services: set[str] = set()

    def address(self, service: str, variable: str) -> str:
        """Its address, as the stack's environment names it."""
        self._services.add(service)
        return self.stack.up([], services=self._services)[variable]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("stack"))
    try:
        yield servers
    finally:
        servers.stack.down()


@pytest.fixture(scope="session")
def kafka_bootstrap(servers: Servers) -> str:
    """A real Kafka's address; use topics of a namespace of your own (`settings`)."""
    return servers.address("kafka", "DRIFTLOOP_KAFKA_BOOTSTRAP")


@pytest.fixture(scope="session")
def mlflow_uri(servers: Servers) -> str:
    """A real MLflow server's address; use a model name or experiment of your own."""
    return servers.address("mlflow", "MLFLOW_TRACKING_URI")


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of one test: a home and a namespace of its own, and the servers that the test names.

    Kafka is always there; MLflow where the test (or a fixture of it) asks for `mlflow_uri`.
    """
    mlflow = request.getfixturevalue("mlflow_uri") if "mlflow_uri" in request.fixturenames else None
    return Settings(
        _env_file=None,
        home=tmp_path / "home",
        namespace=f"t{uuid.uuid4().hex[:6]}.",
        kafka_bootstrap=request.getfixturevalue("kafka_bootstrap"),
        mlflow_tracking_uri=mlflow,
    )


@pytest.fixture(scope="session")
def needs() -> Callable[[object, str], None]:
    """`needs(shutil.which("docker"), "docker")`: a laptop that lacks it skips the test, CI fails it."""

    def needs(present: object, what: str) -> None:
        if present:
            return
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI must have: {what}", pytrace=False)
        pytest.skip(f"not on this machine: {what}")

    return needs
