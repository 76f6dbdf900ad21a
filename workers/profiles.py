"""The reference profile of the model in service, for the agent: fetched when `current-model` changes, kept on disk.

MLflow is asked by a process of its own, which ends again: the agent needs neither its memory nor its threads. While
MLflow is away the profile that is known stands, and the readings go on being watched.
"""

from __future__ import annotations

import hashlib
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import structlog

from schemas.errors import Reject, Retry
from schemas.events import ModelDeployed
from schemas.settings import Settings, load_settings, variable
from streams.confirmed import Confirmed
from streams.kafka import backoff
from streams.profile import Profile, decode

log = structlog.get_logger()

NO_PROFILE_EXIT: Final = 3
_PATIENCE_S: Final = 120


class Profiles:
    """Hands each new model's profile to the detectors."""

    def __init__(self, settings: Settings, kind: Confirmed) -> None:
        self.settings = settings
        self.kind = kind
        self.wanted: queue.Queue[ModelDeployed] = queue.Queue()
        self.settled = threading.Event()  # the first one is in force, or there is none

    def follow(self, deployed: ModelDeployed | None) -> None:
        """A version serves, or none: what `CurrentModel` calls. A model without a profile leaves the last one."""
        if deployed is not None:
            self.wanted.put(deployed)

    def start(self) -> Profiles:
        """Begin to fetch, in a thread."""
        threading.Thread(target=self._work, name="profiles", daemon=True).start()
        return self

    def _work(self) -> None:
        while True:
            deployed = self.wanted.get()
            for wait in backoff(1, 30):
                if self.take(deployed.version, deployed.digest) or not self.wanted.empty():  # a newer one replaces it
                    break
                threading.Event().wait(wait)
            self.settled.set()

    def take(self, version: str, digest: str) -> bool:
        """Put a version's profile in force; whether that is done with, for good or ill."""
        try:
            found = load_profile(self.settings, version, digest)
        except Retry as error:
            log.warning("profile.waiting", version=version, reason=str(error))
            return False
        if found is None:
            log.warning("profile.missing", version=version)
            return True
        name, profile = found
        self.kind.adopt(name, profile)
        log.info("profile.in-force", version=version, devices=profile.devices, activities=len(profile.activities))
        return True


def load_profile(settings: Settings, version: str, digest: str) -> tuple[str, Profile] | None:
    """A version's profile and what it is known by; None if it has none that can be used. Raises Retry.

    digest: of the model's files; a registry that was made anew counts its versions from 1 again.
    """
    path = settings.home.resolve() / "profiles" / f"{settings.model}-{version}-{digest.rpartition(':')[2][:12]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "workers.profiles", version, str(path)]
        known = {
            variable("model"): settings.model,
            variable("mlflow_tracking_uri"): settings.mlflow_tracking_uri or "",
        }
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, check=False, timeout=_PATIENCE_S, env=os.environ | known
            ).returncode
        except subprocess.TimeoutExpired:
            ended = 1
        if ended == NO_PROFILE_EXIT:
            return None
        if ended:
            raise Retry(f"MLflow does not give the profile of version {version}")
    try:
        blob = path.read_bytes()
        profile = decode(blob)
    except OSError as error:
        raise Retry(str(error)) from error
    except Reject as error:
        log.warning("profile.unusable", version=version, reason=str(error))
        path.unlink(missing_ok=True)
        return None
    return f"{version}:{hashlib.sha256(blob).hexdigest()[:12]}", profile


def fetch(version: str, path: Path) -> int:
    """Download a version's profile to path; the exit code."""
    from tempfile import TemporaryDirectory

    from schemas.errors import UserError
    from workers import registry

    settings = load_settings()
    try:
        client = registry.connect(settings)
        # Asked first: MLflow answers a file that is not there like a server in trouble.
        name = registry.profile_of(client, settings.model, version)
        if name is None:
            return NO_PROFILE_EXIT
        with TemporaryDirectory(dir=path.parent) as folder:
            uri = f"models:/{settings.model}/{version}/{name}"
            registry.download(client, uri, Path(folder)).rename(path)
    except Reject:
        return NO_PROFILE_EXIT
    except (Retry, UserError) as error:
        print(f"profile of version {version}: {error}", file=sys.stderr)  # noqa: T201  its parent's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(fetch(sys.argv[1], Path(sys.argv[2])))
