"""`driftloop run retrain`: drift events in, `model-registered` or a decision with its reason out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import msgspec
import structlog
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.envelope import Envelope, envelope
from schemas.errors import Reject, Retry
from schemas.events import DecisionMade, DriftDetected, ModelRegistered, QualityDegraded, event_id
from schemas.settings import Settings
from schemas.topology import ACTIVITY, DECISIONS, DRIFT, MODEL_REGISTERED, RETRAIN_GROUP
from streams.current_model import CurrentModel
from streams.eventlog import read_events
from streams.kafka import client_config
from workers.health import Health
from workers.jobs import Done, Job, JobLoop, Output
from workers.registry import signing_key
from workers.retrain_task import PHASE, RESULT, RETRY_EXIT, TASK, WAITING, Champion, Declined, Result, Task
from workers.startup import begin, now, stop_on_signals, wait_for_topics

log = structlog.get_logger()

SOURCE = "driftloop/retrain"
# The poll loop waits for it, and /live says no after 30 s.
_HISTORY_S = 15.0


class Retrainer:
    """What the retrain worker does with drift events; `registered` is all that the topic says was registered."""

    name = "retrain"
    topic = DRIFT
    group = RETRAIN_GROUP

    def __init__(self, settings: Settings, health: Health, current: CurrentModel) -> None:
        self.settings = settings
        self.health = health
        self.current = current
        self.registered: list[ModelRegistered] | None = None
        # Not the system's: what a kill -9 leaves there, the next start removes.
        self.scratch = settings.home.resolve() / "work" / f"{settings.namespace}retrain-{settings.slot}"
        rmtree(self.scratch, ignore_errors=True)

    def assigned(self) -> None:
        """Another worker may have registered versions meanwhile."""
        self.registered = None

    def start(self, envelope: Envelope) -> Job:
        """A training, or the decision not to have one."""
        event = envelope.event
        if isinstance(event, QualityDegraded):
            detail = f"{event.channel} of {event.device}: {event.fault}; a sensor's fault is mended, not learned"
            return Done(self._decision(envelope, Declined("ignored", "quality", detail)))
        if not isinstance(event, DriftDetected):
            raise Reject("schema", f"{type(event).__name__} does not belong on {DRIFT.name}")
        if event.model != self.settings.model:
            return Done()  # another worker's model
        if not self._history():
            detail = "there is no model yet that this drift could have hurt; the first one learns from these readings"
            return Done(self._decision(envelope, Declined("deferred", "no-model", detail)))
        covering = _covering(event, self._history())
        if covering is not None:
            detail = f"version {covering.version} has learned from readings that came after this drift"
            return Done(self._decision(envelope, Declined("deferred", "covered", detail)))
        return ChildJob(self, envelope, self._task(envelope.id, event))

    def idle(self) -> Job | None:
        """With no model at all, the first labelled readings train the first one."""
        if self._history():
            return None
        # With the topic's own id: an MLflow that outlives a Kafka knows first models of other readings.
        first = event_id("first", self.settings.namespace, self.settings.model, _topic_id(self.settings))
        return ChildJob(self, None, self._task(first, None))

    def committed(self, outputs: Sequence[Output]) -> None:
        """Remember what was registered."""
        for output in outputs:
            if output.event is not None and isinstance(output.event.event, ModelRegistered):
                self._history().append(output.event.event)

    def _history(self) -> list[ModelRegistered]:
        """All registrations of our model, oldest first. Raises Retry if Kafka does not tell them in time."""
        if self.registered is None:
            deadline = time.monotonic() + _HISTORY_S
            found = list(read_events(self.settings, [MODEL_REGISTERED], stopping=lambda: time.monotonic() > deadline))
            if time.monotonic() > deadline:
                raise Retry(f"{MODEL_REGISTERED.name} could not be read within {_HISTORY_S:g} s")
            events = [logged.envelope.event for logged in found if logged is not None]
            self.registered = [
                event for event in events if isinstance(event, ModelRegistered) and event.model == self.settings.model
            ]
        return self.registered

    def _task(self, id: str, drift: DriftDetected | None) -> Task:
        history = self._history()
        champion = None
        if history:
            serving = self.current.latest
            best = next((item for item in history if serving and item.version == serving.version), history[-1])
            champion = Champion(best.version, best.digest)
        return Task(id, drift, champion, [item.window for item in history])

    def outputs(self, cause: Envelope | None, result: Result, task: Task) -> list[Output]:
        """The events that tell of a result."""
        if result.registered is not None:
            registered = envelope(
                result.registered,
                id=event_id("registered", task.event_id),
                source=SOURCE,
                subject=f"{self.settings.model}/{result.registered.version}",
                time=now(),
                root=cause.root if cause else None,
            )
            return [Output(MODEL_REGISTERED, registered)]
        assert result.declined is not None
        if cause is None:
            log.warning("first-model.declined", detail=result.declined.detail)
            return []
        return [self._decision(cause, result.declined)]

    def _decision(self, cause: Envelope, declined: Declined) -> Output:
        decision = DecisionMade(
            model=self.settings.model,
            about="retrain",
            outcome=declined.outcome,
            reason=declined.reason,
            detail=declined.detail,
            concerns=[cause.id],
            ts=now(),
            numbers=declined.numbers or None,
        )
        return Output(
            DECISIONS,
            envelope(
                decision,
                id=event_id("decision", "retrain", cause.id),
                source=SOURCE,
                subject=cause.subject,
                time=decision.ts,
                root=cause.root,
            ),
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


def _covering(drift: DriftDetected, history: Sequence[ModelRegistered]) -> ModelRegistered | None:
    """The version that has already learned from this device's readings up to the drift, if there is one."""
    for registered in reversed(history):
        window = registered.window
        if window.device in (None, drift.device) and any(
            item.partition == drift.position.partition and item.start <= drift.position.offset < item.end
            for item in window.ranges
        ):
            return registered
    return None


class ChildJob:
    """A task in a child process with a deadline; a child that dies is a failed job, not a dead worker."""

    def __init__(self, retrainer: Retrainer, cause: Envelope | None, task: Task) -> None:
        self.retrainer = retrainer
        self.cause = cause
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
        self.working_since = time.monotonic()

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

    def _still_running(self) -> Sequence[Output] | None:
        phase = self._phase()
        self.retrainer.health.doing = phase
        if phase.startswith(WAITING):
            self.working_since = time.monotonic()
            return None
        limit = self.retrainer.settings.train_seconds
        if time.monotonic() - self.working_since < limit:
            return None
        self.cancel()
        return self._told(Result(declined=Declined("failed", "deadline", f"{phase} took longer than {limit:g} s")))

    def _told(self, result: Result) -> list[Output]:
        outputs = self.retrainer.outputs(self.cause, result, self.task)
        if not outputs and self.cause is None:
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
    JobLoop(settings, Retrainer(settings, health, current), health, stopping).run()
    current.stop()
