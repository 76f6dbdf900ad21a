"""No secret is in anything that outlives a deployment or that others can read: a real registry, engine and MLflow."""

from __future__ import annotations

import gzip
import json
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.process import free_port
from deploy.trust import own_key
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL, DECISIONS, DEPLOYED, MODEL_REGISTERED
from tests import engine as engines
from tests.chaos.rollouts import announce, engine_and_registry, world
from tests.integration.worker_processes import eventually, records, worker
from workers import registry, targets

pytestmark = pytest.mark.timeout(900)  # the first time, the engine's images have to be made


class Arguments:
    """The argument lists of all processes of the machine, as often as they can be read."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.left.wait(0.05):
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    self.seen.add(" ".join(process.cmdline()))

    def __enter__(self) -> Arguments:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.join()


@pytest.fixture
def pem() -> str:
    """A signing key, as a secret store hands it over."""
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def test_no_secret_is_in_events_logs_arguments_images_or_mlflow(
    tmp_path, kafka_bootstrap, mlflow_uri, pem, needs, monkeypatch
):
    """The registry's password and the signing key are used on the way, and must be left nowhere."""
    needs(not engines.lacking(), engines.lacking())
    addresses = {"DRIFTLOOP_KAFKA_BOOTSTRAP": kafka_bootstrap, "MLFLOW_TRACKING_URI": mlflow_uri}
    with engine_and_registry(tmp_path, login=True) as (engine, fields, environment):
        monkeypatch.setenv("DOCKER_HOST", environment["DOCKER_HOST"])
        fields |= {"signing_secret": pem, "router_port": free_port(), "bake_seconds": 0}
        with world(tmp_path, addresses, **fields) as settings:
            trust(settings, pem)
            logs = [tmp_path / "deploy.log", tmp_path / "router.log"]
            secrets = {"DRIFTLOOP_REGISTRY_PASSWORD": engines.PASSWORD, "DRIFTLOOP_SIGNING_SECRET": pem}
            with (
                Arguments() as arguments,
                worker(settings, "router", logs[1], **secrets),
                worker(settings, "deploy", logs[0], DRIFTLOOP_LOG_LEVEL="debug", **secrets),
            ):
                version = announce(settings, 1)
                eventually(lambda: records(settings, DEPLOYED), 120, logs[0].read_text)
                time.sleep(1)
                place = targets.make_target(settings)
                (deployment,) = place.list(settings.model)
                container = engine.containers.get(deployment.handle)
                written = {
                    "events": "".join(
                        f"{each.key()} {each.value()} {each.headers()}"
                        for topic in (MODEL_REGISTERED, DEPLOYED, CURRENT_MODEL, DECISIONS)
                        for each in records(settings, topic)
                    ),
                    "logs": "".join(log.read_text() for log in logs) + container.logs().decode(),
                    "arguments": "\n".join(arguments.seen),
                    "container": json.dumps(container.attrs),
                    "image": in_the_image(settings, deployment.image),
                    "mlflow": in_mlflow(settings, version),
                }
                place.delete(deployment)
                place.forget([deployment.image])
    canaries = [engines.PASSWORD, "".join(pem.splitlines()[1:-1])]
    for where, text in written.items():
        assert len(text) > 100, f"nothing was looked at: {where}"
        assert [each for each in canaries if each in text] == [], where
    assert settings.model in written["arguments"], "the container's process was among them"


def trust(settings: Settings, pem: str) -> None:
    """The key's public half, where the deploy worker looks for it."""
    (settings.home / "keys").mkdir(parents=True)
    (settings.home / "keys" / "signing.pem").write_text(pem)
    own_key(settings.home, settings.trusted_folder)
    (settings.home / "keys" / "signing.pem").unlink()


def in_the_image(settings: Settings, image: str) -> str:
    """Manifest, configuration, and the two layers that are ours: the program and the model."""
    known = targets.registry(settings)
    found = known.find(image.partition("@")[2])
    with known.client() as client:
        layers = [
            gzip.decompress(b"".join(client.download_blob(known.name, layer["digest"])))
            for layer in found.manifest["layers"][-2:]
        ]
    return json.dumps([found.manifest, found.config]) + b"".join(layers).decode(errors="replace")


def in_mlflow(settings: Settings, version: str) -> str:
    """Tags, parameters and small files of the version and its run."""
    client = registry.connect(settings)
    known = client.get_model_version(settings.model, version)
    run = client.get_run(known.run_id)
    said = [known.tags, run.data.tags, run.data.params, client.get_registered_model(settings.model).tags]
    files = registry.download(client, f"models:/{settings.model}/{version}", settings.home / "looked-at")
    return json.dumps(said) + "".join(
        path.read_bytes().decode(errors="replace") for path in Path(files).rglob("*") if path.is_file()
    )
