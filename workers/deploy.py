"""`driftloop run deploy`: `model-registered` in, a version in service and `deployed` out.

Every step asks what is there before it makes anything, so that a crash anywhere is mended by doing it again: the new
version is created or adopted, must answer the smoke test, and becomes current in one transaction; the router follows
`current-model`. While a new version bakes, the one before it keeps running and takes over again if the new one crashes,
answers wrong or turns slow; afterwards whatever is not current is taken away.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import httpx
import msgspec
import structlog

from deploy import wayback
from deploy.modelfiles import SmokeCases, smoke_cases, verify
from deploy.rollout import is_itself, smoke, wait_ready
from deploy.target import Deployment, DeploymentSpec, Target
from deploy.trust import check_signature
from schemas.envelope import Envelope, envelope
from schemas.errors import Reject, Retry
from schemas.events import (
    About,
    DecisionMade,
    DeployReason,
    Event,
    ModelDeployed,
    ModelRegistered,
    Smoke,
    SwitchRequested,
    event_id,
)
from schemas.failpoints import reach
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL, DECISIONS, DEPLOY_GROUP, DEPLOYED, MODEL_REGISTERED
from streams.current_model import CurrentModel
from streams.eventlog import read_events
from workers import registry
from workers.baking import Bake
from workers.health import Health
from workers.jobs import Done, Job, JobLoop, Output, ThreadJob
from workers.startup import begin, now, stop_on_signals, wait_for_topics
from workers.targets import make_target

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = structlog.get_logger()

SOURCE = "driftloop/deploy"
_LOOK_EVERY_S = 5.0
_BAKE_EVERY_S = 1.0
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
    mends = True  # what serves is watched while a new version waits for a registry

    def __init__(self, settings: Settings, health: Health, target: Target, client: MlflowClient) -> None:
        self.settings = settings
        self.health = health
        self.target = target
        self.client = client
        self.known = False  # whether what follows is what the topics say
        self.serving: ModelDeployed | None = None
        self.history: list[Envelope] = []  # of ModelDeployed, oldest first
        self.registered: dict[str, Envelope] = {}  # of ModelRegistered, by version
        self.looked = float("-inf")
        self.named: tuple[str, str | None] | None = None
        self.silent = 0  # looks in a row at which the current version has not answered
        self.attempts: Counter[str] = Counter()  # rollouts of an event after which the version was not ready
        self.bake: Bake | None = None
        self.cases: dict[str, SmokeCases] = {}
        self.forgotten: set[str] = set()
        # Not the system's: what a kill -9 leaves there, the next start removes.
        self.scratch = settings.home.resolve() / "work" / f"{settings.namespace}deploy-{settings.slot}"
        rmtree(self.scratch, ignore_errors=True)

    def assigned(self) -> None:
        """Another worker may have switched meanwhile."""
        self.known = False

    def start(self, envelope: Envelope) -> Job:
        """A rollout, a way back, or the decision to have neither."""
        event = envelope.event
        if not isinstance(event, ModelRegistered | SwitchRequested):
            raise Reject("schema", f"{type(event).__name__} does not belong on {MODEL_REGISTERED.name}")
        if event.model != self.settings.model:
            return Done()  # another worker's model
        if event.version is not None and not _NUMBER.fullmatch(event.version):  # it becomes part of an address
            raise Reject("schema", f"version: {event.version[:50]!r} is not a number of the registry")
        self._learn()
        if isinstance(event, SwitchRequested):
            return self._switch(envelope, event)
        self._remember(envelope)
        newest = wayback.newest(self._deployments())
        if int(event.version) <= newest:
            detail = f"version {event.version} is not newer than {newest}, which serves or has served"
            return Done(self._decision(envelope, "skipped", "older-version", detail))
        return ThreadJob(lambda cancelled: self._roll_out(envelope, envelope, cancelled))

    def _switch(self, request: Envelope, asked: SwitchRequested) -> Job:
        """What a person has asked for."""
        serving = self.serving
        if asked.action == "rollback":
            if serving is None or asked.version not in (None, serving.version):
                detail = f"version {asked.version} does not serve; {serving.version if serving else 'none'} does"
                return Done(self._decision(request, "skipped", "not-serving", detail, about="rollback"))
            if wayback.way_back(self._deployments()) is None:
                detail = f"version {serving.version} is the only one in force"
                return Done(self._decision(request, "refused", "no-way-back", detail, about="rollback"))
            why = Reject("manual", asked.detail or f"asked for by {asked.by}")
            return ThreadJob(lambda cancelled: self._go_back(why, cancelled, request))
        wanted = self.registered.get(asked.version or "")
        if wanted is None:
            detail = f"version {asked.version} is not on {MODEL_REGISTERED.name}"
            return Done(self._decision(request, "refused", "unknown-version", detail, about="promote"))
        if serving is not None and serving.version == asked.version:
            detail = f"version {asked.version} serves already"
            return Done(self._decision(request, "skipped", "serves-already", detail, about="promote"))
        return ThreadJob(lambda cancelled: self._roll_out(request, wanted, cancelled))

    def idle(self) -> Job | None:
        """Every few seconds: whatever is not as `current-model` says is mended."""
        self._learn()
        pause = _BAKE_EVERY_S if self._baking() else _LOOK_EVERY_S
        if time.monotonic() - self.looked < pause or self.serving is None:
            return None
        self.looked = time.monotonic()
        return ThreadJob(self._mend)

    def _learn(self) -> None:
        """Read what serves, has served and is registered. Raises Retry if Kafka does not tell it in time."""
        if self.known:
            return
        current = CurrentModel(self.settings).start()
        deadline = time.monotonic() + _LEARN_S
        try:
            told = read_events(
                self.settings, [MODEL_REGISTERED, DEPLOYED], stopping=lambda: time.monotonic() > deadline
            )
            found = [logged.envelope for logged in told if logged is not None]
            if time.monotonic() > deadline or not current.caught_up.wait(deadline - time.monotonic()):
                raise Retry(f"{CURRENT_MODEL.name} could not be read within {_LEARN_S:g} s")
            self.serving, self.known, self.named = current.latest, True, None
        finally:
            current.stop()
        ours = [each for each in found if each.event.model == self.settings.model]
        self.history = [
            each for each in ours if isinstance(each.event, ModelDeployed) and _NUMBER.fullmatch(each.event.version)
        ]
        self.registered = {}
        for each in ours:
            self._remember(each)

    def _remember(self, registered: Envelope) -> None:
        """Keep what was registered, unless nobody whom we trust has signed it."""
        event = registered.event
        if isinstance(event, ModelRegistered):
            with suppress(Reject):
                check_signature(event, self.settings.trusted_folder)
                self.registered.setdefault(event.version, registered)

    def _known(self, version: str) -> Envelope:
        """The ModelRegistered of a version. Raises Reject."""
        if version not in self.registered:
            raise Reject(
                "unknown-version", f"{MODEL_REGISTERED.name} has no version {version} that a trusted key signed"
            )
        return self.registered[version]

    def _deployments(self) -> list[ModelDeployed]:
        return [each.event for each in self.history if isinstance(each.event, ModelDeployed)]

    def _switched(self) -> float:
        """When the version that serves became current, seconds since the epoch."""
        return self.history[-1].time.timestamp() if self.history else float("-inf")

    def _in_force(self) -> tuple[str | None, str | None]:
        """The version that serves, and the one to go back to."""
        back = wayback.way_back(self._deployments())
        return self.serving.version if self.serving else None, back.version if back else None

    def _baking(self) -> bool:
        """Whether the version that serves is still under watch, and can be sent back."""
        return (
            now() - self._switched() < self.settings.bake_seconds and wayback.way_back(self._deployments()) is not None
        )

    def committed(self, outputs: Sequence[Output]) -> None:
        """Remember what became current."""
        for output in outputs:
            if output.event is None or not isinstance(output.event.event, ModelDeployed):
                continue
            if output.topic is DEPLOYED:
                self.history.append(output.event)
            elif output.topic is CURRENT_MODEL:
                reach("deploy.switched")
                self.serving = output.event.event
                self.looked = float("-inf")
        if outputs:
            self.attempts.clear()

    def _roll_out(self, cause: Envelope, registered: Envelope, cancelled: Callable[[], bool]) -> list[Output]:
        """Verify, create, wait, smoke; the events that make the version current. Raises Retry.

        cause: what asks for it; registered: the ModelRegistered of the version, mostly the same.
        """
        event = registered.event
        assert isinstance(event, ModelRegistered)
        by_hand = cause is not registered
        try:
            deployment, took = self._put(event, cancelled, cause.id)
        except Reject as reject:
            if event.version not in self._in_force():
                self._withdraw(event.version)
            log.warning("deploy.refused", version=event.version, reject_class=reject.reject_class, reason=reject.reason)
            about: About = "promote" if by_hand else "deploy"
            return [self._decision(cause, "refused", reject.reject_class, reject.reason, about=about)]
        # A request begins the chain of what it leads to, a drift's begins with its episode.
        asked = by_hand or not event.caused_by or registered.root in event.caused_by
        reason: DeployReason = "manual" if asked else "drift"
        if self.serving is None:
            reason = "first"
        return self._current(cause, registered, deployment, took, reason, event_id("deployed", cause.id))

    def _current(
        self, cause: Envelope, registered: Envelope, deployment: Deployment, took: Smoke, reason: DeployReason, id: str
    ) -> list[Output]:
        """The events that make a version current."""
        deployed = ModelDeployed(
            model=self.settings.model,
            version=deployment.version,
            previous=self.serving.version if self.serving else None,
            target=self.target.name,
            endpoint=deployment.endpoint,
            digest=deployment.digest,
            smoke=took,
            reason=reason,
            caused_by=registered.id,
            image=deployment.image,
        )
        subject = f"{deployed.model}/{deployed.version}"
        told = envelope(deployed, id=id, source=SOURCE, subject=subject, time=now(), root=cause.root)
        return [Output(DEPLOYED, told), Output(CURRENT_MODEL, told)]

    def _go_back(self, why: Reject, cancelled: Callable[[], bool], request: Envelope | None = None) -> list[Output]:
        """The version that served before becomes current again. Raises Retry.

        request: by whom it was asked for; None if the version that serves has to be left by itself.
        """
        left, back = self.history[-1], wayback.way_back(self._deployments())
        assert back is not None
        log.warning("deploy.going-back", to=back.version, reject_class=why.reject_class, reason=why.reason)
        cause = request or left
        try:
            registered = self._known(back.version)
            deployment, took = self._standing(back) or self._put(registered.event, cancelled)
        except Reject as reject:
            if request is not None:
                return [self._decision(request, "refused", reject.reject_class, reject.reason, about="rollback")]
            raise Retry(f"version {back.version} should serve again and cannot be brought back: {reject}") from reject
        outputs = self._current(
            cause,
            registered,
            deployment,
            took,
            "rollback",
            event_id("rolled-back", left.id, request.id if request else ""),
        )
        detail = f"{back.version} serves again: {why.reason}"
        return [*outputs, self._decision(cause, "rolled-back", why.reject_class, detail, about="rollback")]

    def _standing(self, back: ModelDeployed) -> tuple[Deployment, Smoke] | None:
        """The earlier version if it still runs, which needs neither MLflow nor time."""
        deployment = self.target.find(back.model, back.version)
        if deployment is None or deployment.digest != back.digest or not is_itself(deployment):
            return None
        return deployment, back.smoke

    def _put(
        self, registered: Event, cancelled: Callable[[], bool], cause: str | None = None
    ) -> tuple[Deployment, Smoke]:
        """The version, running and tested. Raises Retry, or Reject if it will never be.

        cause: the event that asks for it; after _ATTEMPTS in which it did not become ready, it will never be.
        """
        assert isinstance(registered, ModelRegistered)
        version = registered.version

        def sleep(seconds: float) -> None:
            if cancelled():
                raise Retry(_TAKEN)
            time.sleep(seconds)

        with self._verified(registered) as files:
            cases = self.cases[version]
            if cancelled():
                raise Retry(_TAKEN)
            self.health.doing = f"starting version {version}"
            drift = registered.caused_by[0] if registered.caused_by else ""
            spec = DeploymentSpec(
                self.settings.model, version, registered.digest, files, run_id=registered.run_id, cause=drift
            )
            deployment = self.target.create(spec)
        reach("deploy.created")
        try:
            wait_ready(self.target, deployment, self.settings.ready_seconds, sleep=sleep)
            self.health.doing = f"smoke test of version {version}"
            took = smoke(deployment.endpoint, cases)
        except Retry as error:
            if isinstance(ended := self.target.ended(deployment), Reject):
                raise ended from error
            if cause is None or cancelled():
                raise
            self.attempts[cause] += 1
            if self.attempts[cause] < _ATTEMPTS:
                raise
            raise Reject("not-ready", f"after {_ATTEMPTS} attempts: {error}") from error
        reach("deploy.ready")
        return deployment, took

    @contextmanager
    def _verified(self, registered: Event) -> Iterator[Path]:
        """The version's files, downloaded and found to be what a trusted key has signed; nothing of them was loaded.

        Raises Retry; Reject as `check_signature` and `modelfiles.verify` do.
        """
        assert isinstance(registered, ModelRegistered)
        check_signature(registered, self.settings.trusted_folder)
        with _folder(self.scratch) as folder:
            uri = f"models:/{self.settings.model}/{registered.version}"
            files = registry.download(self.client, uri, folder)
            verify(files, registered.digest)
            self.cases[registered.version] = smoke_cases(files)
            yield files

    def _withdraw(self, version: str) -> None:
        deployment = self.target.find(self.settings.model, version)
        if deployment is not None:
            self.target.delete(deployment)
            if deployment.image is not None and deployment.image not in {each.image for each in self._deployments()}:
                self.target.forget([deployment.image])

    def _mend(self, cancelled: Callable[[], bool]) -> list[Output]:
        """Watch a new version and go back from it; bring back a current version that is gone, name it champion, take
        away what is no longer current.
        """
        serving = self.serving
        assert serving is not None
        deployment = self.target.find(serving.model, serving.version)
        if self._baking() and (why := self._watched(serving, deployment)) is not None:
            return self._go_back(why, cancelled)
        itself = None if deployment is None else is_itself(deployment)
        self.silent = self.silent + 1 if itself is None else 0
        if deployment is None or itself is False or self.silent >= _SILENT_LOOKS:
            log.warning("deploy.gone", version=serving.version, silent=deployment is not None and itself is None)
            deployment = self._brought_back(serving, cancelled)
        if deployment.endpoint != serving.endpoint:
            return [self._moved(serving, deployment)]
        self._name_champion(serving)
        if now() - self._switched() >= self.settings.grace_seconds and self._routed(serving):
            self._retire(serving, cancelled)
        return []

    def _watched(self, serving: ModelDeployed, deployment: Deployment | None) -> Reject | None:
        """Why the version has to be left, if it has to be."""
        if deployment is None:
            return Reject("crashed", f"version {serving.version} is no longer there")
        if self.bake is None or self.bake.version != serving.version:
            self.bake = Bake(serving.version, self.settings.slow_ms)
        if serving.version not in self.cases:
            if serving.version not in self.registered:
                return None
            try:
                with self._verified(self.registered[serving.version].event):
                    pass
            except Reject as reject:  # changed in the registry since; what runs was loaded before
                log.warning("deploy.unwatched", version=serving.version, reason=str(reject))
                return None
        return self.bake.look(self.target, deployment, self.cases[serving.version])

    def _retire(self, serving: ModelDeployed, cancelled: Callable[[], bool]) -> None:
        """Take away what is neither current nor, while the current version is under watch, the way back."""
        back = wayback.way_back(self._deployments()) if self._baking() else None
        kept = {serving.version, back.version if back else None}
        for other in self.target.list(serving.model):
            if other.version not in kept and not cancelled():
                self.target.delete(other)
                log.info("deploy.retired", version=other.version)
        dispensable = set(wayback.dispensable_images(self._deployments()))
        self.forgotten &= dispensable  # one that was needed again in between is forgotten again
        if dispensable - self.forgotten and back is None:
            self.target.forget(sorted(dispensable - self.forgotten))
            self.forgotten = dispensable

    def _brought_back(self, serving: ModelDeployed, cancelled: Callable[[], bool]) -> Deployment:
        try:
            deployment, _ = self._put(self._known(serving.version).event, cancelled)
        except Reject as reject:
            # No event is to blame, and newer versions must still find us at work.
            raise Retry(f"version {serving.version} should serve and cannot be brought back: {reject}") from reject
        self.silent = 0
        return deployment

    def _name_champion(self, serving: ModelDeployed) -> None:
        _, back = self._in_force()
        names = (serving.version, back)
        if self.named == names:
            return
        try:
            registry.set_champion(self.client, serving.model, *names)
        except Reject as reject:  # deleted from the registry by hand; it serves nevertheless
            log.warning("champion.unnamed", version=serving.version, reason=str(reject))
        except Retry as error:  # an absent MLflow must not keep us from watching what serves
            log.warning("champion.unnamed", version=serving.version, reason=str(error))
            return
        self.named = names

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

    def _decision(self, cause: Envelope, outcome: str, reason: str, detail: str, *, about: About = "deploy") -> Output:
        decision = DecisionMade(
            model=self.settings.model,
            about=about,
            outcome=outcome,
            reason=reason,
            detail=detail,
            concerns=[cause.id],
            ts=now(),
        )
        id = event_id("decision", about, cause.id)
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


def run(settings: Settings) -> None:
    """Run until SIGTERM."""
    target = make_target(settings)
    health = begin("deploy", settings)
    stopping = stop_on_signals()
    wait_for_topics(settings, health, stopping)
    if stopping.is_set():
        return
    client = registry.connect(settings)
    JobLoop(settings, Deployer(settings, health, target, client), health, stopping).run()
