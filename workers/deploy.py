"""`driftloop run deploy`: `model-registered` in, a version in service and `deployed` out.

Every step asks what is there before it makes anything, so that a crash anywhere is mended by doing it again: the new
version is created or adopted, must answer the smoke test, and becomes current in one transaction; the router follows
`current-model`, and what is not current is taken away after the grace time.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import httpx
import msgspec
import structlog

from deploy.modelfiles import smoke_cases, verify
from deploy.process import ProcessTarget
from deploy.rollout import is_itself, smoke, wait_ready
from deploy.target import Deployment, DeploymentSpec, Target
from schemas.envelope import Envelope, envelope
from schemas.errors import Reject, Retry
from schemas.events import DecisionMade, ModelDeployed, ModelRegistered, Smoke, event_id
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL, DECISIONS, DEPLOY_GROUP, DEPLOYED, MODEL_REGISTERED
from streams.current_model import CurrentModel
from workers import registry
from workers.health import Health
from workers.jobs import Done, Job, JobLoop, Output, ThreadJob
from workers.startup import begin, now, stop_on_signals, wait_for_topics

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = structlog.get_logger()

SOURCE = "driftloop/deploy"
_LOOK_EVERY_S = 5.0
# The poll loop waits for it, and /live says no after 30 s.
_LEARN_S = 15.0
_SILENT_LOOKS = 4
_ATTEMPTS = 3
_NUMBER = re.compile("[0-9]{1,18}")
_TAKEN = "the event was taken from us"


class Deployer:
    """What the deploy worker does with registered versions, and how it keeps the world as `current-model` says."""

    name = "deploy"
    topic = MODEL_REGISTERED
    group = DEPLOY_GROUP

    def __init__(self, settings: Settings, health: Health, target: Target, client: MlflowClient) -> None:
        self.settings = settings
        self.health = health
        self.target = target
        self.client = client
        self.known = False  # whether `serving` is what `current-model` says
        self.serving: ModelDeployed | None = None
        self.switched = float("-inf")
        self.looked = float("-inf")
        self.named: str | None = None
        self.silent = 0  # looks in a row at which the current version has not answered
        self.attempts: Counter[str] = Counter()  # rollouts of an event after which the version was not ready
        # Not the system's: what a kill -9 leaves there, the next start removes.
        self.scratch = settings.home.resolve() / "work" / f"{settings.namespace}deploy-{settings.slot}"
        rmtree(self.scratch, ignore_errors=True)

    def assigned(self) -> None:
        """Another worker may have switched meanwhile."""
        self.known = False

    def start(self, envelope: Envelope) -> Job:
        """A rollout, or the decision not to have one."""
        event = envelope.event
        if not isinstance(event, ModelRegistered):
            raise Reject("schema", f"{type(event).__name__} does not belong on {MODEL_REGISTERED.name}")
        if event.model != self.settings.model:
            return Done()  # another worker's model
        if not _NUMBER.fullmatch(event.version):  # it becomes part of an address in the registry
            raise Reject("schema", f"version: {event.version[:50]!r} is not a number of the registry")
        self._learn()
        serving = self.serving
        if serving is not None and int(event.version) <= int(serving.version):
            detail = f"version {event.version} is not newer than {serving.version}, which serves"
            return Done(self._decision(envelope, "skipped", "older-version", detail))
        return ThreadJob(lambda cancelled: self._roll_out(envelope, event, cancelled))

    def idle(self) -> Job | None:
        """Every few seconds: whatever is not as `current-model` says is mended."""
        self._learn()
        if time.monotonic() - self.looked < _LOOK_EVERY_S or self.serving is None:
            return None
        self.looked = time.monotonic()
        return ThreadJob(self._mend)

    def _learn(self) -> None:
        """Read what serves. Raises Retry if Kafka does not tell it in time."""
        if self.known:
            return
        current = CurrentModel(self.settings).start()
        try:
            if not current.caught_up.wait(_LEARN_S):
                raise Retry(f"{CURRENT_MODEL.name} could not be read within {_LEARN_S:g} s")
            self.serving, self.known, self.named = current.latest, True, None
        finally:
            current.stop()

    def committed(self, outputs: Sequence[Output]) -> None:
        """Remember what became current."""
        for output in outputs:
            if output.topic is CURRENT_MODEL and output.event is not None:
                deployed = output.event.event
                assert isinstance(deployed, ModelDeployed)
                if self.serving is None or self.serving.version != deployed.version:
                    self.switched = time.monotonic()
                self.serving = deployed
                self.looked = float("-inf")
        self.attempts.clear()

    def _roll_out(self, cause: Envelope, event: ModelRegistered, cancelled: Callable[[], bool]) -> list[Output]:
        """Verify, create, wait, smoke; the events that make the version current. Raises Retry."""
        try:
            deployment, took = self._put(event.version, event.digest, cancelled, cause.id)
        except Reject as reject:
            self._withdraw(event.version)
            log.warning("deploy.refused", version=event.version, reject_class=reject.reject_class, reason=reject.reason)
            return [self._decision(cause, "refused", reject.reject_class, reject.reason)]
        serving = self.serving
        deployed = ModelDeployed(
            model=self.settings.model,
            version=event.version,
            previous=serving.version if serving else None,
            target=self.target.name,
            endpoint=deployment.endpoint,
            digest=event.digest,
            smoke=took,
            reason="first" if serving is None else "drift" if event.caused_by else "manual",
            caused_by=cause.id,
        )
        told = envelope(
            deployed,
            id=event_id("deployed", cause.id),
            source=SOURCE,
            subject=f"{deployed.model}/{deployed.version}",
            time=now(),
            root=cause.root,
        )
        return [Output(DEPLOYED, told), Output(CURRENT_MODEL, told)]

    def _put(
        self, version: str, digest: str, cancelled: Callable[[], bool], cause: str | None = None
    ) -> tuple[Deployment, Smoke]:
        """The version, running and tested. Raises Retry, or Reject if it will never be.

        cause: the event that asks for it; after _ATTEMPTS in which it did not become ready, it will never be.
        """

        def sleep(seconds: float) -> None:
            if cancelled():
                raise Retry(_TAKEN)
            time.sleep(seconds)

        with _folder(self.scratch) as folder:
            files = registry.download(self.client, f"models:/{self.settings.model}/{version}", folder)
            verify(files, digest)
            cases = smoke_cases(files)
            if cancelled():
                raise Retry(_TAKEN)
            self.health.doing = f"starting version {version}"
            deployment = self.target.create(DeploymentSpec(self.settings.model, version, digest, files))
        try:
            wait_ready(self.target, deployment, self.settings.ready_seconds, sleep=sleep)
            self.health.doing = f"smoke test of version {version}"
            return deployment, smoke(deployment.endpoint, cases)
        except Retry as error:
            if cause is None or cancelled():
                raise
            self.attempts[cause] += 1
            if self.attempts[cause] < _ATTEMPTS:
                raise
            raise Reject("not-ready", f"after {_ATTEMPTS} attempts: {error}") from error

    def _withdraw(self, version: str) -> None:
        deployment = self.target.find(self.settings.model, version)
        if deployment is not None:
            self.target.delete(deployment)

    def _mend(self, cancelled: Callable[[], bool]) -> list[Output]:
        """Bring back a current version that is gone, name it champion, take away what is no longer current."""
        serving = self.serving
        assert serving is not None
        deployment = self.target.find(serving.model, serving.version)
        itself = None if deployment is None else is_itself(deployment)
        self.silent = self.silent + 1 if itself is None else 0
        if deployment is None or itself is False or self.silent >= _SILENT_LOOKS:
            log.warning("deploy.gone", version=serving.version, silent=deployment is not None and itself is None)
            deployment = self._brought_back(serving, cancelled)
        if deployment.endpoint != serving.endpoint:
            return [self._moved(serving, deployment)]
        self._name_champion(serving)
        if time.monotonic() - self.switched >= self.settings.grace_seconds and self._routed(serving):
            for other in self.target.list(serving.model):
                if other.version != serving.version and not cancelled():
                    self.target.delete(other)
                    log.info("deploy.retired", version=other.version)
        return []

    def _brought_back(self, serving: ModelDeployed, cancelled: Callable[[], bool]) -> Deployment:
        try:
            deployment, _ = self._put(serving.version, serving.digest, cancelled)
        except Reject as reject:
            # No event is to blame, and newer versions must still find us at work.
            raise Retry(f"version {serving.version} should serve and cannot be brought back: {reject}") from reject
        self.silent = 0
        return deployment

    def _name_champion(self, serving: ModelDeployed) -> None:
        if self.named == serving.version:
            return
        try:
            registry.set_champion(self.client, serving.model, serving.version, serving.previous)
        except Reject as reject:  # deleted from the registry by hand; it serves nevertheless
            log.warning("champion.unnamed", version=serving.version, reason=str(reject))
        self.named = serving.version

    def _moved(self, serving: ModelDeployed, deployment: Deployment) -> Output:
        """The same version at another address: the pointer moves, nothing new was deployed."""
        moved = msgspec.structs.replace(serving, endpoint=deployment.endpoint)
        subject = f"{moved.model}/{moved.version}"
        id = event_id("moved", serving.caused_by, deployment.endpoint)
        return Output(CURRENT_MODEL, envelope(moved, id=id, source=SOURCE, subject=subject, time=now()))

    def _routed(self, serving: ModelDeployed) -> bool:
        """Whether the router sends requests to the current version by now, or there is no router to ask."""
        if self.settings.router_port == 0:
            return True
        try:
            # A proxy from the environment is for the outside world.
            route = httpx.get(f"{self.settings.router_url}/-/route", timeout=2, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return False
        return isinstance(route, dict) and route.get("version") == serving.version

    def _decision(self, cause: Envelope, outcome: str, reason: str, detail: str) -> Output:
        decision = DecisionMade(
            model=self.settings.model,
            about="deploy",
            outcome=outcome,
            reason=reason,
            detail=detail,
            concerns=[cause.id],
            ts=now(),
        )
        id = event_id("decision", "deploy", cause.id)
        told = envelope(decision, id=id, source=SOURCE, subject=cause.subject, time=decision.ts, root=cause.root)
        return Output(DECISIONS, told)


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A folder that is gone afterwards. Raises Retry where there is no room for it."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=scratch)
    except OSError as error:
        raise Retry(f"{scratch}: {error}") from error
    with folder as name:
        yield Path(name)


def serve_command(spec: DeploymentSpec, port: int) -> list[str]:
    """How the scoring process of a version is started."""
    return [
        *(sys.executable, "-m", "workers.serve"),
        *("--model", spec.model, "--version", spec.version, "--digest", spec.digest),
        *("--folder", str(spec.folder), "--port", str(port)),
    ]


def run(settings: Settings) -> None:
    """Run until SIGTERM."""
    health = begin("deploy", settings)
    stopping = stop_on_signals()
    wait_for_topics(settings, health, stopping)
    if stopping.is_set():
        return
    client = registry.connect(settings)
    target = ProcessTarget(settings.home, serve_command, starting_seconds=settings.ready_seconds)
    JobLoop(settings, Deployer(settings, health, target, client), health, stopping).run()
