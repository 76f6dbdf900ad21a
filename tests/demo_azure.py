"""`make demo TARGET=aci-fake`: the demo on Azure as far as it can be had on one machine (tests/azure.py).

A Docker engine, a registry with Azure Container Registry's login and Azure Resource Manager are started; the demo then
runs unchanged, with `DRIFTLOOP_TARGET=aci`. With --target docker: only the engine, for machines that have none.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from deploy.image.engine import Runtime
from deploy.image.registry import Registry
from tests import azure as fake
from tests import engine as engines
from workers.targets import credential


def main() -> int:
    """The demo's exit code; 2 if this machine lacks something."""
    arguments = sys.argv[1:]
    docker_only = arguments[:2] == ["--target", "docker"]
    if lacking := engines.lacking():
        print(f"the fake Azure needs {lacking}", file=sys.stderr)
        return 2
    with ExitStack() as left, tempfile.TemporaryDirectory() as name:
        engine = left.enter_context(engines.engine())
        environment = {"DOCKER_HOST": f"unix://{engines.HOME}/docker.sock", "DRIFTLOOP_BASE_IMAGE": engines.BASE}
        if docker_only:
            environment["DRIFTLOOP_TARGET"] = "docker"
            arguments = arguments[2:]
        else:
            environment |= azure(left, Path(name), engine)
        command = [sys.executable, "-m", "workers.cli", "demo", *arguments]
        return subprocess.run(command, env=os.environ | environment, check=False).returncode


def azure(left: ExitStack, folder: Path, engine: object) -> dict[str, str]:
    """The environment of a worker that deploys there."""
    behind = left.enter_context(engines.registry(folder / "registry", data=engines.HOME / "registry"))
    found = left.enter_context(fake.azure(folder, engine=engine, behind=behind))
    os.environ |= {name: found.environment[name] for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")}
    repository = f"{found.registry}/driftloop/models"
    registry = Registry(repository=repository, auth="azure", credential=credential(), ca=found.ca)
    return {
        **found.environment,
        "DRIFTLOOP_TARGET": "aci",
        "DRIFTLOOP_IMAGE_REPOSITORY": repository,
        "DRIFTLOOP_IMAGE_BUILDER": "registry",
        "DRIFTLOOP_RUNTIME_IMAGE": Runtime(engine, engines.BASE).push(registry),
    }


if __name__ == "__main__":
    sys.exit(main())
