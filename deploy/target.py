"""Where a model version can run: the protocol that every target implements, and the values that it speaks in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from schemas.errors import Reject, Retry

LOOPBACK: Final = "127.0.0.1"
# Another program may take a port that was free a moment ago.
PORT_ATTEMPTS: Final = 5
# What is told of the log of a version that ended.
LOG_LINES: Final = 15

# They become parts of paths, process marks, image tags and DNS labels, and they come from an event.
_MODEL: Final = re.compile(r"[a-z0-9-]{1,64}")
_VERSION: Final = re.compile(r"[A-Za-z0-9._]{1,32}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What is to run. folder: the model's files, which `modelfiles.verify` accepts for this digest.

    run_id, cause: the training and the event (drift) behind it, for labels; they may be empty.
    Raises Reject: `schema` for a name, version or digest that could mean anything but itself.
    """

    model: str
    version: str
    digest: str
    folder: Path
    run_id: str = ""
    cause: str = ""

    def __post_init__(self) -> None:
        for field, pattern in (("model", _MODEL), ("version", _VERSION), ("digest", _DIGEST)):
            if not pattern.fullmatch(getattr(self, field)):
                raise Reject("schema", f"{field}: {getattr(self, field)!r} is not of the form {pattern.pattern}")

    @property
    def label(self) -> str:
        """What this version is called wherever it runs."""
        return label(self.model, self.version)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version that runs, or is about to. endpoint: its own base address, without a slash at the end.

    handle: what the target knows it by (a process, a container, a resource id); means nothing to anybody else.
    image: what it runs, by digest, where that is an image.
    """

    target: str
    model: str
    version: str
    digest: str
    endpoint: str
    handle: str
    image: str | None = None

    @property
    def label(self) -> str:
        """What this version is called wherever it runs."""
        return label(self.model, self.version)


class Target(Protocol):
    """Puts versions somewhere and takes them away again. Every method may be repeated after any crash.

    All raise Retry when the place itself is not there.
    """

    @property
    def name(self) -> str:
        """The target as it stands in settings and events."""

    def create(self, spec: DeploymentSpec) -> Deployment:
        """This version, started; `rollout.wait_ready` then waits until it answers.

        What already runs with this version and digest is adopted; what is dead, stuck or of another digest is replaced.
        Raises Reject: as `modelfiles.verify` does, or `crashed` for a version that ends by itself, with its last lines.
        """

    def find(self, model: str, version: str) -> Deployment | None:
        """This version if it runs, whoever started it; None if it does not, or no longer."""

    def list(self, model: str) -> tuple[Deployment, ...]:
        """Every version of the model that runs, in no particular order."""

    def delete(self, deployment: Deployment) -> None:
        """Stops this version, letting requests under way finish, and removes what was kept for it."""

    def ended(self, deployment: Deployment) -> Retry | Reject | None:
        """Why it will never answer, as the error to raise, with its last log lines; None while it runs."""

    def forget(self, images: Sequence[str]) -> None:
        """Removes images that nothing needs any more; what is gone already is passed over."""


def label(model: str, version: str) -> str:
    """What a version is called wherever it runs: activity-v7."""
    return f"{model}-v{version}"
