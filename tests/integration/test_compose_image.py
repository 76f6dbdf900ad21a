"""docker-compose.yml as compose itself reads it, and its image as its services are run: on a real engine and Kafka."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from deploy.process import free_port
from schemas.settings import Settings
from tests import engine as engines
from tests.places import ROOT
from workers.stack import PROCESSES

pytestmark = pytest.mark.timeout(1200)  # the image is made of all our dependencies


def test_compose_takes_the_file(needs, tmp_path):
    """What a YAML parser takes, compose may not: a condition, an anchor or a mount that it does not know."""
    needs(shutil.which("docker-compose"), "docker-compose (Debian: docker-compose)")
    for name in ("docker-compose.yml", "deploy", ".secrets"):
        (tmp_path / name).symlink_to(ROOT / name)  # a project of its own: nothing is written next to the file
    command = ["docker-compose", "--profile", "monitoring", "config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert {name for name, each in services.items() if each.get("command", [""])[0] == "run"} >= {"deploy", "monitor"}
    assert services["router"]["network_mode"] == "service:deploy"
    assert services["agent-1"]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


@pytest.fixture(scope="module")
def image(needs) -> Iterator[tuple[Any, str]]:
    """The engine, and the image of deploy/Dockerfile on the stand-in for its base."""
    needs(not engines.lacking(), engines.lacking())
    with engines.engine() as engine:
        built, _ = engine.images.build(
            path=str(ROOT),
            dockerfile="deploy/Dockerfile",
            tag="driftloop-test-processes:1",
            buildargs={"BASE_IMAGE": engines.BASE},
            network_mode="host",  # the tests' engine has no way out of its bridge
            rm=True,
            forcerm=True,
        )
        yield engine, built.id


def run(image: tuple[Any, str], settings: Settings, *command: str, **environment: str) -> Any:
    """A container as the file confines it, on this machine's network, where the tests' servers are."""
    engine, id = image
    plain = settings.model_dump(mode="json", include={"kafka_bootstrap", "namespace", "model"})
    known = {f"DRIFTLOOP_{name.upper()}": value for name, value in plain.items()}
    return engine.containers.run(
        id,
        list(command),
        environment=known | {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri} | environment,
        detach=True,
        network_mode="host",
        user="10001:10001",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": "", "/data": "uid=10001,gid=10001"},
        mem_limit="1g",
        pids_limit=256,
    )


def test_every_process_of_the_image_runs_confined_and_ends_when_told(image, settings, mlflow_uri):
    """A file that an image lacks, or a folder that it cannot write, shows when it is run and not before."""
    ports = {name: free_port() for name in PROCESSES}
    made = [run(image, settings, "topics", "create")]
    try:
        assert made[0].wait(timeout=120)["StatusCode"] == 0, made[0].logs().decode()
        for name, port in ports.items():
            extra = {"DRIFTLOOP_ROUTER_PORT": str(free_port()), "DRIFTLOOP_MONITOR_PORT": str(free_port())}
            made.append(run(image, settings, "run", name, DRIFTLOOP_HEALTH_PORT=str(port), **extra))
        for (name, port), container in zip(ports.items(), made[1:], strict=True):
            assert lives(port), f"{name}: {container.logs().decode()[-2000:]}"
        for name, container in zip(ports, made[1:], strict=True):
            container.stop(timeout=40)  # as long as compose waits; then it would be killed
            container.reload()
            code = container.attrs["State"]["ExitCode"]
            assert code == 0, f"{name} ended with {code}: {container.logs().decode()[-2000:]}"
    finally:
        for container in made:
            container.remove(force=True)


def test_the_image_has_the_mlflow_that_the_file_starts(image):
    """The service `mlflow` is the same image with another command, on PostgreSQL."""
    engine, id = image
    asked = ["-c", "mlflow --version && python -c 'import psycopg2'"]
    said = engine.containers.run(
        id,
        asked,
        entrypoint="/bin/sh",
        user="10001:10001",
        read_only=True,
        tmpfs={"/tmp": "", "/data": ""},
        remove=True,
    )
    assert b"mlflow, version" in said


def lives(port: int) -> bool:
    """Whether it says so within 90 s."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/live", timeout=2, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            time.sleep(0.3)
    return False
