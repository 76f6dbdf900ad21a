"""Where models can be put, for tests and measurements of all targets: a place each, and the means to disturb it."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
import skops.io
import yaml
from aiohttp import web
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploy.aci import AciTarget, Place
from deploy.containers import DockerTarget
from deploy.image.append import AppendBuilder
from deploy.image.engine import EngineBuilder, Runtime
from deploy.image.layer import MODEL_LABEL
from deploy.image.registry import Registry
from deploy.process import ProcessTarget
from deploy.router import Router
from deploy.target import Deployment, DeploymentSpec, Target
from streams.features import FEATURES
from tests import azure as fake
from tests import engine as engines
from workers.targets import credential

ROOT = Path(__file__).parents[1]
SERVE = """
import sys
from pathlib import Path
import numpy as np
from deploy.serving import create_app, listen, served

name, version, digest, folder, port = sys.argv[1:]
model = served(name, version, digest, Path(folder))
listen(create_app(model, lambda readings, columns: (np.empty(0), np.empty((0, 3)))), "127.0.0.1", int(port))
"""


def command(spec: DeploymentSpec, port: int) -> list[str]:
    return [sys.executable, "-c", SERVE, spec.model, spec.version, spec.digest, str(spec.folder), str(port)]


def write_model(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(90, 3))
    columns = list(FEATURES[:3])  # the image's server refuses what it cannot make of readings
    labels = np.array(["wlk", "sit", "jog"])[rng.integers(0, 3, 90)]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    folder.mkdir()
    skops.io.dump(pipeline, folder / "model.skops")
    generic = {"loader_module": "mlflow.sklearn", "model_path": "model.skops"}
    sklearn = {"pickled_model": "model.skops", "serialization_format": "skops"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": generic, "sklearn": sklearn}}))
    smoke = {
        "columns": columns,
        "inputs": rows[:30].tolist(),
        "expected": pipeline.predict(rows[:30]).tolist(),
        "probabilities": pipeline.predict_proba(rows[:30]).tolist(),
    }
    (folder / "smoke.json").write_text(json.dumps(smoke))
    return folder


class ProcessPlace:
    """The process target in a home of its own, and the means to disturb it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def target(self) -> Target:
        """As a newly started worker has it."""
        return ProcessTarget(self.home, command, stop_seconds=10)

    def kill(self, deployment: Deployment) -> None:
        process = psutil.Process(int(deployment.handle.partition("@")[0]))
        process.kill()
        for _ in range(200):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return
            threading.Event().wait(0.02)

    def leave(self) -> None:
        """Nothing is shared with other tests."""


class DockerPlace:
    """Containers of the tests' own engine, in a scope of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.left = ExitStack()
        self.engine = self.left.enter_context(engines.engine())

    def target(self, memory_mb: int = 512) -> Target:
        builder = EngineBuilder(self.engine, Runtime(self.engine, engines.BASE))
        return DockerTarget(self.engine, builder, scope=str(self.home), stop_seconds=10, memory_mb=memory_mb)

    def kill(self, deployment: Deployment) -> None:
        self.engine.containers.get(deployment.handle).kill()

    def leave(self) -> None:
        for image in self.engine.images.list(filters={"label": f"{MODEL_LABEL}=m"}):
            self.engine.images.remove(image.id, force=True)
        self.left.close()


class AciPlace:
    """Container groups of a fake Azure, which run on the tests' own engine; images by the builder without Docker."""

    def __init__(self, home: Path) -> None:
        self.left = ExitStack()
        self.engine = self.left.enter_context(engines.engine())
        behind = self.left.enter_context(engines.registry(home / "registry", data=engines.HOME / "registry"))
        self.azure = self.left.enter_context(fake.azure(home, engine=self.engine, behind=behind))
        patched = self.left.enter_context(pytest.MonkeyPatch.context())
        for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
            patched.setenv(name, self.azure.environment[name])
        self.registry = Registry(
            repository=f"{self.azure.registry}/driftloop/models",
            auth="azure",
            credential=credential(),
            ca=self.azure.ca,
        )
        self.runtime = Runtime(self.engine, engines.BASE).push(self.registry).partition("@")[2]

    def target(self) -> Target:
        where = fake_place(self.azure)
        return AciTarget(where, credential(), AppendBuilder(self.registry, self.runtime), self.registry)

    def kill(self, deployment: Deployment) -> None:
        self.azure.arm.runs.stop(deployment.handle.rpartition("/")[2])
        del self.azure.arm.groups[deployment.handle.rpartition("/")[2]]

    def leave(self) -> None:
        refused, early = self.azure.arm.refused, self.azure.arm.early
        self.left.close()
        assert refused == [], "Azure would not have taken this"
        assert early == 0


def fake_place(azure: fake.Azure, operation_seconds: float = 60.0, scope: str = "tests") -> Place:
    """The fake as the settings would name it."""
    return Place(
        subscription=fake.SUBSCRIPTION,
        resource_group=fake.GROUP,
        location=fake.LOCATION,
        scope=scope,
        dns_prefix="driftloop",
        identity=azure.environment["DRIFTLOOP_ACI_IDENTITY"],
        endpoint=azure.endpoint,
        ca=azure.ca,
        polling_seconds=0.2,
        operation_seconds=operation_seconds,
    )


# A target joins by adding its place here.
PLACES = {"process": ProcessPlace, "docker": DockerPlace, "aci": AciPlace}


class running:  # noqa: N801  # reads as a verb
    """A router in a thread of its own; gives it with its address."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self):
        self.thread.start()
        return self.router, asyncio.run_coroutine_threadsafe(self.begin(), self.loop).result(10)

    async def begin(self):
        self.runner = web.AppRunner(self.router.application())
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
