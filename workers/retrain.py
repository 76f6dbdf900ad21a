"""`driftloop run retrain`: drift events in, `model-registered` or a decision with its reason out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Event as Flag
from typing import Final

import msgspec
import structlog
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.envelope import Envelope, envelope
from schemas.errors import Reject, Retry
from schemas.events import (
    About,
    DecisionMade,
    DriftDetected,
    ModelDeployed,
    QualityDegraded,
    RetrainRequested,
    SwitchRequested,
    event_id,
)
from schemas.settings import Settings
from schemas.topology import ACTIVITY, DECISIONS, DEPLOYED, DRIFT, MODEL_REGISTERED, RETRAIN_GROUP, Topic
from streams.current_model import CurrentModel
from streams.eventlog import Logged, read_events
from streams.kafka import client_config
from workers.controller import Controller, Decided, Policy, State, Train, version_of
from workers.health import Health
from workers.jobs import Done, Job, JobLoop, Output
from workers.registry import signing_key
from workers.retrain_task import PHASE, RESULT, RETRY_EXIT, TASK, WAITING, Champion, Declined, Result, Task, ToProve
from workers.startup import begin, now, stop_on_signals, wait_for_topics

log = structlog.get_logger()

SOURCE = "driftloop/retrain"
_HISTORY_S = 120.0  # the poll loop waits for it
_FIRST_LOOK_S = 20.0
_UNDER_WAY: Final[tuple[State, ...]] = ("collecting", "training", "evaluating")
_PROOF_EVERY_S = (5.0, 60.0)  # at first, at most


class Retrainer:
    """What the retrain worker does with drift events. The controller decides; this moves events in and out of it."""

    name = "retrain"
    topic = DRIFT
    group = RETRAIN_GROUP
    mends = False

    def __init__(self, settings: Settings, health: Health, current: CurrentModel, stopping: Flag) -> None:
        self.settings = settings
        self.stopping = stopping
        self.health = health
        self.current = current
        self.controller: Controller | None = None
        self.proof_at = 0.0  # when readings for a verdict are looked for next
        self.proof_waits = _PROOF_EVERY_S[0]
        self.awaited: tuple[str | None, float] = (None, 0.0)  # a version, and when its fate is looked for next
        # Not the system's: what a kill -9 leaves there, the next start removes.
        self.scratch = settings.home.resolve() / "work" / f"{settings.namespace}retrain-{settings.slot}"
        rmtree(self.scratch, ignore_errors=True)

    def assigned(self) -> None:
        """Another worker may have decided and registered meanwhile."""
        self.controller = None

    def start(self, envelope: Envelope) -> Job:
        """A training, or the decision not to have one."""
        event = envelope.event
        if not isinstance(event, DriftDetected | QualityDegraded | RetrainRequested):
            raise Reject("schema", f"{type(event).__name__} does not belong on {DRIFT.name}")
        if event.model != self.settings.model:
            return Done()  # another worker's model
        controller = self._controller()
        controller.see(envelope)
        answer = controller.answer(envelope, now())
        if isinstance(answer, Train) and controller.policy.mode != "every-alarm":
            answer = controller.answer(envelope, now(), self._ahead())
        return self._job(answer)

    def idle(self) -> Job | None:
        """With no model at all, the first labelled readings train the first one; then what waits, when it may."""
        controller = self._controller()
        if not controller.registered:
            # With the topic's own id: an MLflow that outlives a Kafka knows first models of other readings.
            first = event_id("first", self.settings.namespace, self.settings.model, _topic_id(self.settings))
            return ChildJob(self, (), Task(first))
        answer = controller.due(now())
        if answer is not None:
            return self._job(answer)
        state = controller.state(now())
        waiting = f", {len(controller.waiting)} drifts wait" if controller.waiting else ""
        self.health.doing = f"{state}{waiting}"
        return self._proof(controller)

    def _proof(self, controller: Controller) -> Job | None:
        """The verdict on a version that a drift has led to, as soon as there are readings to tell."""
        latest = self.current.latest
        if latest is not None and _served(controller) != latest.version:
            if time.monotonic() < self.proof_at:
                return None
            self.proof_at = time.monotonic() + _PROOF_EVERY_S[0]
            self._hear_of_deployments(controller)
        self._look_for_fate(controller)
        found = controller.unproved()
        if found is None or time.monotonic() < self.proof_at:
            return None
        deployed, serves = found
        event = deployed.event
        assert isinstance(event, ModelDeployed)
        known = {each.version: each for each in controller.registered}
        new, previous = known.get(event.version), known.get(event.previous or "")
        if not serves or new is None or previous is None:
            detail = f"another version took the place of {event.version} before it could be told"
            return Done(*self._verdict(deployed, Declined("no-effect", "superseded", detail)))
        final = now() - deployed.time.timestamp() >= self.settings.verdict_seconds
        self.proof_at = time.monotonic() + self.proof_waits
        self.proof_waits = min(2 * self.proof_waits, _PROOF_EVERY_S[1])
        task = Task(
            deployed.id,
            proof=ToProve(
                Champion(new.version, new.digest, new.run_id),
                Champion(previous.version, previous.digest, previous.run_id),
                new.window,
                controller.drifts_since(new.window),
                final,
            ),
        )
        return ChildJob(self, (deployed,), task)

    def _look_for_fate(self, controller: Controller) -> None:
        """Hear of it if the newest version was refused, or has been sent back already."""
        newest = controller.registered[-1].version
        if newest in controller.left or any(version_of(each) == newest for each in controller.deployed):
            return
        awaited, at = self.awaited
        if awaited == newest and time.monotonic() < at:
            return
        self.awaited = newest, time.monotonic() + _PROOF_EVERY_S[1]
        if awaited != newest:  # it is being deployed
            return
        self._hear_of_deployments(controller, DECISIONS)

    def _hear_of_deployments(self, controller: Controller, *more: Topic) -> None:
        """What the deploy worker has told of meanwhile; of retrainings we decide ourselves, and know it."""
        for logged in self._read(DEPLOYED, *more):
            event = logged.envelope.event
            if isinstance(event, ModelDeployed) or (isinstance(event, DecisionMade) and event.about == "deploy"):
                controller.see(logged.envelope)

    def _verdict(self, deployed: Envelope, said: Declined) -> list[Output]:
        """What a deployment has come to; one that harmed is asked to be undone."""
        event = deployed.event
        assert isinstance(event, ModelDeployed)
        self.proof_waits = _PROOF_EVERY_S[0]
        latency = {"latency.p50_ms": event.smoke.p50_ms}
        for each in self._controller().deployed:
            if isinstance(each.event, ModelDeployed) and each.event.version == event.previous:
                latency["latency.previous_p50_ms"] = each.event.smoke.p50_ms
        told = Decided(said.outcome, said.reason, said.detail, (deployed.id,), None, said.numbers | latency)
        outputs = [self._decision(told, about="verdict", root=deployed.root)]
        if said.outcome == "harmed":
            request = SwitchRequested(
                model=self.settings.model, action="rollback", version=event.version, by=SOURCE, detail=said.detail
            )
            id = event_id("harmed", deployed.id)
            asked = envelope(request, id=id, source=SOURCE, subject=self.settings.model, time=now(), root=deployed.root)
            outputs.append(Output(MODEL_REGISTERED, asked))
        return outputs

    def committed(self, outputs: Sequence[Output]) -> None:
        """Fold what we have told ourselves."""
        for output in outputs:
            if output.event is not None:
                self._controller().see(output.event)

    def under_way(self, phase: str) -> None:
        """Which state a child's phase means, empty once it has ended."""
        if self.controller is not None:
            self.controller.running = next((state for state in _UNDER_WAY if phase.startswith(state)), None)

    def _job(self, answer: Train | Decided | None) -> Job:
        if answer is None:
            return Done()
        if isinstance(answer, Decided):
            return Done(self._decision(answer))
        return ChildJob(self, answer.drifts, self._task(answer))

    def _controller(self) -> Controller:
        """As all topics say. Raises Retry if Kafka does not tell them in time."""
        if self.controller is None:
            controller = Controller(self.settings.model, policy_of(self.settings))
            # Drifts first: a decision speaks of them. Then in the order in which things were written.
            told = sorted(self._read(DRIFT, DECISIONS, MODEL_REGISTERED, DEPLOYED), key=lambda each: each.written)
            for logged in [*(each for each in told if each.topic is DRIFT), *told]:
                controller.see(logged.envelope)
            controller.forget_unanswered()
            self.controller = controller
        return self.controller

    def _ahead(self) -> list[Envelope]:
        """All of the drift topic; what is answered is known as such."""
        return [logged.envelope for logged in self._read(DRIFT)]

    def _read(self, *topics: Topic) -> list[Logged]:
        deadline = time.monotonic() + _HISTORY_S

        def late() -> bool:
            self.health.beat()
            return self.stopping.is_set() or time.monotonic() > deadline

        found = list(read_events(self.settings, topics, stopping=late))
        if late():
            raise Retry(f"{', '.join(topic.name for topic in topics)} could not be read within {_HISTORY_S:g} s")
        return [logged for logged in found if logged is not None]

    def _task(self, train: Train) -> Task:
        controller = self._controller()
        history = controller.standing or controller.registered
        champion = None
        if history:
            serving = self.current.latest
            known = (item for item in controller.registered if serving and item.version == serving.version)
            best = next(known, history[-1])
            champion = Champion(best.version, best.digest, best.run_id)
        request = train.request
        return Task(
            train.lead,
            [each.event for each in train.drifts if isinstance(each.event, DriftDetected)],
            [each.id for each in train.drifts] or ([train.lead] if request else []),
            champion,
            [item.window for item in history],
            request.device if request else None,
            forced=request is not None or self.settings.retrain_policy in ("periodic", "every-alarm"),
            attempt=train.attempt,
            repeat=request.run_id if request and request.action == "repeat" else None,
            until=None if train.since is None else train.since + self.settings.collect_seconds,
        )

    def outputs(self, drifts: Sequence[Envelope], result: Result, task: Task) -> list[Output]:
        """The events that tell of a result."""
        if task.proof is not None:
            return [] if result.declined is None else self._verdict(drifts[0], result.declined)
        told: list[Output] = []
        root = drifts[0].root if drifts else next(iter(task.caused_by), None)
        if result.registered is not None:
            registered = envelope(
                result.registered,
                id=event_id("registered", task.event_id),
                source=SOURCE,
                subject=f"{self.settings.model}/{result.registered.version}",
                time=now(),
                root=root,
            )
            told.append(Output(MODEL_REGISTERED, registered))
        if result.declined is not None:
            declined = result.declined
            if not task.caused_by and result.registered is None:
                log.warning("training.declined", detail=declined.detail)
            # A training that nobody asked for, the period's, is told as well: it counts.
            concerns = tuple(task.caused_by or ([task.event_id] if task.champion else ()))
            if concerns:
                told.append(
                    self._decision(
                        Decided(
                            declined.outcome,
                            declined.reason,
                            declined.detail,
                            concerns,
                            declined.cause,
                            declined.numbers,
                            task.attempt,
                        ),
                        about="promote" if result.registered is not None else "retrain",
                        root=root,
                    )
                )
        return told

    def _decision(self, decided: Decided, about: About = "retrain", root: str | None = None) -> Output:
        decision = DecisionMade(
            model=self.settings.model,
            about=about,
            outcome=decided.outcome,
            reason=decided.reason,
            detail=decided.detail,
            concerns=list(decided.concerns),
            ts=now(),
            numbers=decided.numbers or None,
            cause=decided.cause,
        )
        lead = decided.concerns[0]
        again = (decided.attempt,) if decided.attempt else ()
        return Output(
            DECISIONS,
            envelope(
                decision,
                id=event_id("decision", about, lead, *again),
                source=SOURCE,
                subject=self.settings.model,
                time=decision.ts,
                root=root or lead,
            ),
        )


def _served(controller: Controller) -> str | None:
    """The version that was deployed last, as far as we have heard."""
    return version_of(controller.deployed[-1]) if controller.deployed else None


def policy_of(settings: Settings) -> Policy:
    """The controller's policy that the settings ask for."""
    return Policy(
        settings.retrain_policy,
        settings.cooldown_seconds,
        settings.daily_trainings,
        settings.breaker_rejections,
        settings.breaker_seconds,
        settings.retrain_period_seconds,
        look_s=settings.look_seconds,
    )


def _topic_id(settings: Settings) -> str:
    """What tells this activity topic from one of the same name before or elsewhere. Raises Retry."""
    name = settings.topic(ACTIVITY)
    try:
        admin = AdminClient(client_config(settings))
        asked = admin.describe_topics(TopicCollection([name]), request_timeout=10)
        return str(asked[name].result().topic_id)
    except KafkaException as error:
        raise Retry(f"{name} cannot be described: {error.args[0].str()}") from error


class ChildJob:
    """A task in a child process with a deadline; a child that dies is a failed job, not a dead worker."""

    def __init__(self, retrainer: Retrainer, drifts: Sequence[Envelope], task: Task) -> None:
        self.retrainer = retrainer
        self.drifts = drifts
        self.task = task
        try:
            retrainer.scratch.mkdir(parents=True, exist_ok=True)
            self.folder = Path(mkdtemp(dir=retrainer.scratch))
            (self.folder / TASK).write_bytes(msgspec.json.encode(task))
            command = [sys.executable, "-m", "workers.retrain_job", str(self.folder)]
            # The child reads its end of stdin to learn that we are gone.
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        except OSError as error:
            raise Retry(f"a training cannot be started in {retrainer.scratch}: {error}") from error
        self.working_since = self.begun = time.monotonic()

    def poll(self) -> Sequence[Output] | None:
        """See workers.jobs.Job."""
        code = self.process.poll()
        if code is None:
            return self._still_running()
        try:
            if code == RETRY_EXIT:
                raise Retry(self._phase())
            result = self._result() if code == 0 else None
            if result is None:
                result = Result(
                    declined=Declined("failed", "training-failed", f"the training process ended with {code}")
                )
            return self._told(result)
        finally:
            self._clean()

    def gives_way(self) -> bool:
        """What waits for readings must not keep a person's request, or a sensor's fault, waiting as well."""
        # The first model waits for ever, and must get to look at what there is however many events come.
        first = self.task.champion is None
        looked = time.monotonic() - self.begun > _FIRST_LOOK_S
        return self._phase().startswith("collecting") and (looked or not first)

    def _still_running(self) -> Sequence[Output] | None:
        phase = self._phase()
        self.retrainer.health.doing = phase
        self.retrainer.under_way(phase)
        if phase.startswith(WAITING):
            self.working_since = time.monotonic()
            return None
        limit = self.retrainer.settings.train_seconds
        if time.monotonic() - self.working_since < limit:
            return None
        self.cancel()
        return self._told(Result(declined=Declined("failed", "deadline", f"{phase} took longer than {limit:g} s")))

    def _told(self, result: Result) -> list[Output]:
        outputs = self.retrainer.outputs(self.drifts, result, self.task)
        if not outputs and self.task.proof is None:
            raise Retry("the first model could not be trained; trying again")
        return outputs

    def _phase(self) -> str:
        try:
            return (self.folder / PHASE).read_text()
        except FileNotFoundError:
            return "starting"

    def _result(self) -> Result | None:
        try:
            return msgspec.json.decode((self.folder / RESULT).read_bytes(), type=Result)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def cancel(self) -> None:
        """See workers.jobs.Job."""
        self.process.kill()
        self.process.wait()
        self._clean()

    def _clean(self) -> None:
        self.retrainer.under_way("")
        if self.process.stdin is not None:
            self.process.stdin.close()
        rmtree(self.folder, ignore_errors=True)


def run(settings: Settings) -> None:
    """Run until SIGTERM."""
    health = begin("retrain", settings)
    log.info("signing", key_id=signing_key(settings).key_id)  # a key that is missing is said before any training
    stopping = stop_on_signals()
    wait_for_topics(settings, health, stopping)
    if stopping.is_set():
        return
    current = CurrentModel(settings).start()
    while not current.caught_up.wait(1) and not stopping.is_set():
        health.beat()
    JobLoop(settings, Retrainer(settings, health, current, stopping), health, stopping).run()
    current.stop()
