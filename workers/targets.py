"""The target that the settings name, with everything that it needs."""

from __future__ import annotations

import sys

from deploy.process import ProcessTarget
from deploy.target import DeploymentSpec, Target
from schemas.settings import Settings


def make_target(settings: Settings) -> Target:
    """Where models are deployed. Raises UserError if a setting that the target needs is missing."""
    return ProcessTarget(settings.home, serve_command, starting_seconds=settings.ready_seconds)


def serve_command(spec: DeploymentSpec, port: int) -> list[str]:
    """How the scoring process of a version is started."""
    return [
        *(sys.executable, "-m", "workers.serve"),
        *("--model", spec.model, "--version", spec.version, "--digest", spec.digest),
        *("--folder", str(spec.folder), "--port", str(port)),
    ]
