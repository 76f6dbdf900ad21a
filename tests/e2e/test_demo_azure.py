"""The same loop with the model in a container, and in a container group: `make demo TARGET=docker|aci-fake`."""

import base64
import json
import os
import subprocess
import sys

import pytest

from tests import azure as fake
from tests import engine as engines


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [["--target", "docker"], []], ids=["docker", "aci-fake"])
def test_the_loop_closes_in_containers(needs, tmp_path, target):
    """Images, registry login, container groups and the switch between them, driven by events alone."""
    needs(not engines.lacking(), engines.lacking())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRIFTLOOP_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo_azure", *target, "--json"],
        env=clean | {"DRIFTLOOP_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=800,
    )
    report = json.loads(done.stdout)
    assert report["closed"], report
    assert done.returncode == 0
    assert {"drift", "model-registered", "deployed"} <= report["chain"].keys()
    if not target:
        assert_kept_nowhere(tmp_path / "home")


def assert_kept_nowhere(home):
    """No token of Azure, of the managed identity or of the registry is in an event, a log or any other file."""
    registry = base64.urlsafe_b64encode(b'{"jti": "canary-of-the-registry-')
    canaries = (fake.AAD_TOKEN.encode(), fake.Identity.secret.encode(), registry)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 20
    held = {str(path) for path in files for canary in canaries if canary in path.read_bytes()}
    assert held == set()
