"""A controller's world without Kafka: a queue of drift events, trainings that take time, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.envelope import Envelope, envelope
from schemas.events import (
    DecisionMade,
    DriftDetected,
    ModelDeployed,
    ModelRegistered,
    OffsetRange,
    Position,
    QualityDegraded,
    Smoke,
    TrainingWindow,
    event_id,
)
from workers.controller import Controller, Decided, Policy, Train

DEVICE = "phone-07"
DEFAULT = Policy()


def drift(offset=500, change=None, partition=2, device=DEVICE, model="activity", **fields):
    given = {
        "device": device,
        "model": model,
        "feature": "gravity.x",
        "statistic": "mean",
        "detector": "adwin",
        "severity": "warning",
        "effect": 3.0,
        "direction": "up",
        "before": 0.0,
        "after": 1.0,
        "ts": 10.0,
        "change_ts": 5.0,
        "position": Position("activity", partition, offset),
        "change_position": Position("activity", partition, offset - 100 if change is None else change),
        "episode": "e",
        "test": "statistic",
    }
    return DriftDetected(**{**given, **fields})


def fault(device=DEVICE, ts=8.0, ended=False):
    return QualityDegraded(
        device=device,
        model="activity",
        channel="gravity.x",
        fault="stuck",
        ts=ts,
        position=Position("activity", 2, 1),
        ended=ended,
    )


def learned(version, start, end, partition=2, device=None, caused_by=()):
    window = TrainingWindow(
        topic="activity", ranges=[OffsetRange(partition, start, end)], rows=1, sha256="", device=device
    )
    return ModelRegistered(
        model="activity",
        version=version,
        run_id=f"run-{version}",
        winner="random-forest",
        candidates=[],
        window=window,
        digest=f"sha256:{version}",
        caused_by=list(caused_by),
    )


def deployed(version, previous=None, reason="drift", caused_by="r"):
    return ModelDeployed(
        model="activity",
        version=version,
        previous=previous,
        target="process",
        endpoint="http://127.0.0.1:1",
        digest="sha256:1",
        smoke=Smoke(requests=20, p50_ms=3.0, p99_ms=9.0),
        reason=reason,
        caused_by=caused_by,
    )


def decision(about, outcome, reason, *concerns, **more):
    given = {"model": "activity", "detail": "", "ts": 1.0} | more
    return DecisionMade(about=about, outcome=outcome, reason=reason, concerns=list(concerns), **given)


def told(event, id="an-event", at=0.0):
    return envelope(event, id=id, source="s", subject=DEVICE, time=at, root="root")


class World:
    """A worker's life in miniature. ends: what a training comes to: `promoted`, `rejected`, `uncertain`, `unhurt`."""

    def __init__(self, policy: Policy = DEFAULT, ends: Callable[[Train], str] = lambda _: "promoted") -> None:
        self.policy = policy
        self.ends = ends
        self.training_s = 30.0
        self.log: list[Envelope] = []  # all topics, as written
        self.trained: list[Train] = []
        self.now = 0.0
        self.controller = Controller("activity", policy)
        self.publish(learned("1", 0, 300), "first", 0.0)

    def publish(self, event, id, at):
        self.log.append(told(event, id, at))
        self.controller.see(self.log[-1])

    def restart(self):
        """As another worker would find things."""
        self.controller = Controller("activity", self.policy)
        for each in self.log:
            self.controller.see(each)

    def consume(self, queue: Sequence[tuple[float, Envelope]], until: float, *, restarts: bool = False) -> None:
        """Work on events as they come, one at a time, and on what is due between them."""
        for number, (at, each) in enumerate(queue):
            while self.now < at:
                self.act(self.controller.due(self.now))
                self.now = min(at, self.now + 5.0)
            ahead = [later for when, later in queue[number + 1 :] if when <= self.now]
            self.log.append(each)
            if restarts:
                self.restart()
            self.controller.see(each)
            self.act(self.controller.answer(each, self.now, ahead))
        while self.now < until:
            self.act(self.controller.due(self.now))
            self.now += 5.0

    def act(self, answer) -> None:
        if answer is None:
            return
        if isinstance(answer, Decided):
            self.decide(answer.outcome, answer.reason, answer.concerns, answer.attempt, answer.cause)
            return
        assert isinstance(answer, Train)
        self.trained.append(answer)
        self.now += self.training_s
        ids = [each.id for each in answer.drifts]
        end = self.ends(answer)
        if end == "promoted":
            version = str(len(self.controller.registered) + 1)
            devices = sorted({each.event.device for each in answer.drifts})
            window = TrainingWindow(
                topic="activity",
                ranges=[OffsetRange(number, 0, 10**6) for number in range(4)],
                rows=1,
                sha256="",
                devices=devices,
            )
            import msgspec

            made = msgspec.structs.replace(learned(version, 0, 0, caused_by=ids), window=window)
            self.publish(made, event_id("registered", answer.lead), self.now)
            self.decide("promoted", "better-on-recent", ids or [answer.lead], answer.attempt, about="promote")
        else:
            ends = {"uncertain": ("held", "uncertain"), "unhurt": ("not-needed", "champion-unhurt")}
            outcome, reason = ends.get(end, ("rejected", "not-better"))
            self.decide(outcome, reason, ids or [answer.lead], answer.attempt)

    def decide(self, outcome, reason, concerns, attempt=0, cause=None, about="retrain"):
        event = decision(about, outcome, reason, *concerns, ts=self.now, cause=cause)
        self.publish(event, event_id("decision", about, concerns[0], attempt), self.now)

    @property
    def decisions(self) -> list[DecisionMade]:
        return [each.event for each in self.log if isinstance(each.event, DecisionMade)]

    def concerned(self) -> set[str]:
        return {id for each in self.decisions for id in each.concerns}
