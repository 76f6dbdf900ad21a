"""When to retrain: drift events in, a training or a decision with its reason out, everything from the topics alone.

Pure: what it knows it has folded from events, and the time is an argument. So a worker that takes over rebuilds it, a
backtest runs it over recordings, and the same topics give the same decisions.

The states: *idle*; *suspected*, where a drift waits until a retraining is allowed; *collecting*, *training*,
*evaluating*, while one runs; *cooldown* after one. One runs at a time. A drift that comes meanwhile is answered if that
one learned from its readings, else waits and starts the next one (the trailing edge), so no change is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from schemas.envelope import Envelope
from schemas.events import (
    DecisionMade,
    DriftDetected,
    ModelDeployed,
    ModelRegistered,
    QualityDegraded,
    RetrainRequested,
    TrainingWindow,
    event_id,
)

State = Literal["idle", "suspected", "collecting", "training", "evaluating", "cooldown"]
Mode = Literal["driftloop", "never", "periodic", "every-alarm"]

# Reasons for which a drift waits: it is decided again as soon as they are gone.
WAITING: Final = frozenset({"cooldown", "budget", "breaker", "hold", "uncertain"})
# What ends a training that was really done, and so costs budget and begins a cooldown.
TRAINED: Final = frozenset({"rejected", "held"})
FAILED: Final = frozenset({"training-failed", "deadline"})
DAY_S: Final = 86_400.0
# What a few minutes showed of a drift is looked at again once more readings have come, so often.
LOOKED_AT: Final = frozenset(
    {("not-needed", "champion-unhurt"), ("rejected", "not-better"), ("rejected", "forgets-anchor")}
)
LOOKS: Final = 2
UNSURE_SHARE: Final = 0.2  # of the cooldown, after a training that could not tell; with each in a row twice that
FAULT_LINGERS_S: Final = 60.0  # of event time: a detector's bouts reach back
# An agent whose detector began anew tells no end of a fault; a fault that lasts is told of the windows themselves.
FAULT_OPEN_S: Final = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How willing the controller is. Seconds; trainings a day; rejections in a row that open the breaker.

    look_s: after which a drift that did not hurt, or was not healed, is looked at again.
    """

    mode: Mode = "driftloop"
    cooldown_s: float = 300.0
    daily_trainings: int = 12
    breaker_rejections: int = 3
    breaker_s: float = 6 * 3600.0
    period_s: float = 6 * 3600.0
    attempts: int = 5
    look_s: float = 240.0


@dataclass(frozen=True, slots=True)
class Train:
    """Retrain for these drifts. lead: names the training for good; attempt: of this lead, from 0.

    since: how long the first of them has waited.
    """

    lead: str
    drifts: tuple[Envelope, ...]
    attempt: int = 0
    request: RetrainRequested | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """Do not retrain. concerns: ids of the events that this is the answer to."""

    outcome: str
    reason: str
    detail: str
    concerns: tuple[str, ...]
    cause: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class _Wait:
    """since: the drift's first answer. until: it is not to be looked at before."""

    since: float
    until: float


@dataclass(slots=True)
class _Waiting:
    """A drift that waits."""

    envelope: Envelope
    wait: _Wait


@dataclass(frozen=True, slots=True)
class _Made:
    """A version: id and root of its event, the drifts that it was made for, the rejections before it."""

    id: str
    root: str
    drifts: tuple[Envelope, ...]
    rejections: int


class Controller:
    """What the topics say of one model's retrainings."""

    def __init__(self, model: str, policy: Policy) -> None:
        self.model = model
        self.policy = policy
        self.registered: list[ModelRegistered] = []
        self.waiting: dict[str, _Waiting] = {}
        self.answered: dict[str, int] = {}  # decisions on each event so far
        self.uncertain: dict[str, int] = {}  # trainings of it that could not tell
        self.looks: dict[str, int] = {}  # of each drift: ends of trainings that are looked at again
        self.settled: set[str] = set()
        self.trainings: list[float] = []  # when each ended, seconds since the epoch
        self.begun = 0.0  # when the first model was registered
        self.rejections = 0  # in a row
        self.held = False
        self.unsure = 0  # trainings in a row that want more windows, not another drift
        self.running: State | None = None
        self.faults: dict[tuple[str, str, str], tuple[float, float | None]] = {}  # event time of begin and end
        self.deployed: list[Envelope] = []  # of ModelDeployed, oldest first
        self.left: set[str] = set()  # versions that were refused or sent back
        self.reopened: dict[str, int] = {}  # of each drift: how many of its versions failed
        self.judged: set[str] = set()  # deployments with a verdict
        self.drifted: list[tuple[str, int, int]] = []  # device, partition, offset of each change
        self._drifts: dict[str, Envelope] = {}  # seen, and neither waiting nor settled
        self._unseen: dict[str, _Wait] = {}  # drifts that wait and were not seen yet
        self._made: dict[str, _Made] = {}  # by version
        self._leads: dict[str, str] = {}  # of drifts that wait again: what names their next training

    # What the topics tell.

    def see(self, told: Envelope) -> None:
        """Fold one event of `drift`, `decisions`, `model-registered` or `deployed` in; oldest first within a topic."""
        event = told.event
        if event.model != self.model:
            return
        match event:
            case DriftDetected():
                change = event.change_position
                self.drifted.append((event.device, change.partition, change.offset))
                if told.id in self._unseen:
                    self.waiting[told.id] = _Waiting(told, self._unseen.pop(told.id))
                elif told.id not in self.settled and told.id not in self.waiting:
                    self._drifts[told.id] = told
            case QualityDegraded():
                self._fault(event)
            case ModelRegistered():
                self._registered(told, event)
            case DecisionMade(about="retrain"):
                self._decided(told, event)
            case DecisionMade(about="verdict"):
                self.judged |= set(event.concerns)
                if event.outcome == "harmed":
                    self._failed(told, *(version_of(each) for each in self.deployed if each.id in event.concerns))
            case DecisionMade(about="deploy", outcome="refused"):
                self._failed(told, *(name for name, made in self._made.items() if made.id in event.concerns))
            case ModelDeployed():
                self._deployed(told, event)
            case _:
                pass

    def _fault(self, event: QualityDegraded) -> None:
        key = (event.device, event.channel, event.fault)
        if event.ended and key in self.faults:
            self.faults[key] = (self.faults[key][0], event.ts)
        elif not event.ended:
            self.faults[key] = (event.ts, None)

    def _registered(self, told: Envelope, event: ModelRegistered) -> None:
        if any(each.version == event.version for each in self.registered):
            return
        first = not self.registered
        self.registered.append(event)
        known = [self.waiting[id].envelope if id in self.waiting else self._drifts.get(id) for id in event.caused_by]
        self._made[event.version] = _Made(
            told.id, told.root, tuple(each for each in known if each is not None), self.rejections
        )
        self._settle(event.caused_by)
        if first:  # which is no retraining
            self.begun = told.time.timestamp()
        else:
            self.trainings.append(told.time.timestamp())
        self.rejections = 0
        self.unsure = 0

    def _deployed(self, told: Envelope, event: ModelDeployed) -> None:
        if any(each.id == told.id for each in self.deployed):
            return
        if event.reason == "rollback":
            left = [each for each in self.deployed if version_of(each) == event.previous]
            if left and left[-1].root == told.root:  # a person's request has a chain of its own
                self._failed(told, event.previous)
        else:
            self.left.discard(event.version)  # somebody has promoted it all the same
        self.deployed.append(told)

    def _failed(self, told: Envelope, *versions: str | None) -> None:
        """Versions were refused or sent back: what they were made for is not healed, and waits again, a few times."""
        for version in versions:
            made = self._made.get(version or "")
            if version is None or made is None or version in self.left:
                continue
            self.left.add(version)
            self.rejections = made.rejections + 1
            for each in made.drifts:
                self.reopened[each.id] = self.reopened.get(each.id, 0) + 1
                self.answered[each.id] = self.answered.get(each.id, 0) + 1  # or two decisions would have one id
                if self.reopened[each.id] <= LOOKS:
                    self.settled.discard(each.id)
                    self._leads[each.id] = event_id("again", each.id, version)
                    self.waiting[each.id] = _Waiting(each, _Wait(told.time.timestamp(), 0.0))

    @property
    def standing(self) -> list[ModelRegistered]:
        """Versions that were neither refused nor sent back, oldest first."""
        return [each for each in self.registered if each.version not in self.left]

    def _decided(self, told: Envelope, event: DecisionMade) -> None:
        for id in event.concerns:
            self.answered[id] = self.answered.get(id, 0) + 1
            if event.reason == "uncertain":
                self.uncertain[id] = self.uncertain.get(id, 0) + 1
        if event.outcome in ("holding", "released"):
            self.held = event.outcome == "holding"
        if event.outcome in TRAINED or event.reason in FAILED:
            self.trainings.append(told.time.timestamp())
        if event.outcome in TRAINED:
            self.unsure = self.unsure + 1 if event.outcome == "held" else 0
        elif event.outcome == "given-up":
            self.unsure = 0
        looked_at = self.policy.mode == "driftloop" and (event.outcome, event.reason) in LOOKED_AT
        again = [id for id in event.concerns if looked_at and self.looks.get(id, 0) < LOOKS]
        if event.outcome in ("rejected", "given-up") or event.reason in FAILED:
            # A second look at one drift is no second drift that cannot be healed.
            self.rejections += not any(id in self.looks for id in event.concerns)
        for id in again:
            self.looks[id] = self.looks.get(id, 0) + 1
            self._wait(id, event, event.ts + self.policy.look_s)
        if event.outcome in ("deferred", "held") and event.reason in WAITING:
            for id in event.concerns:
                self._wait(id, event)
        else:
            self._settle(id for id in event.concerns if id not in again)

    def _wait(self, id: str, event: DecisionMade, until: float = 0.0) -> None:
        wait = _Wait(event.ts, until)
        if id in self.waiting:
            self.waiting[id].wait = replace(wait, since=self.waiting[id].wait.since)
        elif (known := self._drifts.pop(id, None)) is not None:
            self.waiting[id] = _Waiting(known, wait)
        elif id not in self.settled:
            self._unseen[id] = replace(wait, since=self._unseen.get(id, wait).since)

    def _settle(self, ids: Iterable[str]) -> None:
        for id in ids:
            self.settled.add(id)
            self.waiting.pop(id, None)
            self._drifts.pop(id, None)
            self._unseen.pop(id, None)

    def forget_unanswered(self) -> None:
        """Drifts that nothing was decided on will come, or come again; until then nothing is known of them."""
        self._drifts.clear()

    # What is to be done.

    def state(self, now: float) -> State:
        """Where the model's retraining stands."""
        if self.running is not None:
            return self.running
        if self.trainings and self._since_last(now) < self._cooldown():
            return "cooldown"
        return "suspected" if any(item.wait.until <= now for item in self.waiting.values()) else "idle"

    def answer(self, told: Envelope, now: float, ahead: Sequence[Envelope] = ()) -> Train | Decided | None:
        """What a drift event leads to; None if it was answered before (a second delivery) or is another model's.

        ahead: events that are on the topic behind it already: what the training also learns from joins it.
        """
        event, id = told.event, told.id
        if event.model != self.model or id in self.settled or id in self.waiting:
            return None
        if isinstance(event, RetrainRequested):
            return self._asked(told, event)
        if isinstance(event, QualityDegraded):
            over = " is over" if event.ended else "; a sensor's fault is mended, not learned"
            detail = f"{event.channel} of {event.device}: {event.fault}{over}"
            return Decided("ignored", "quality", detail, (id,), "sensor-fault")
        return self._drifted(told, event, now, ahead) if isinstance(event, DriftDetected) else None

    def _drifted(self, told: Envelope, event: DriftDetected, now: float, ahead: Sequence[Envelope]) -> Train | Decided:
        id = told.id
        for each in ahead:
            if isinstance(each.event, QualityDegraded):
                self._fault(each.event)
        if (refused := self._refused(told, event)) is not None:
            return refused
        if (blocked := self._blocked(now)) is not None:
            reason, detail, numbers = blocked
            return Decided("deferred", reason, detail, (id,), numbers=numbers)
        others = [] if self.policy.mode == "every-alarm" else [*self._joining(now), *self._welcome(told, ahead)]
        return Train(id, (told, *others), self.answered.get(id, 0))

    def due(self, now: float) -> Train | Decided | None:
        """What is to be done without a new event: a drift whose time has come, or the period's training."""
        for id, item in self.waiting.items():
            if item.wait.until > now:
                continue
            assert isinstance(item.envelope.event, DriftDetected)
            if (refused := self._refused(item.envelope, item.envelope.event)) is not None:
                return refused
            if self.uncertain.get(id, 0) >= self.policy.attempts:
                detail = f"{self.uncertain[id]} trainings could not tell whether a new model is better"
                return Decided("given-up", "uncertain", detail, (id,), attempt=self.answered[id])
        last = self.trainings[-1] if self.trainings else self.begun
        periodic = self.policy.mode == "periodic" and self.registered and not self.held
        if periodic and now - last >= self.policy.period_s:
            return Train(event_id("periodic", self.model, self.registered[-1].version, len(self.trainings)), ())
        joining = self._joining(now)
        if not joining or self._blocked(now) is not None:
            return None
        first = joining[0].id
        lead = self._leads.get(first, first)
        return Train(lead, joining, self.answered.get(first, 0), since=self.waiting[first].wait.since)

    def unproved(self) -> tuple[Envelope, bool] | None:
        """A deployment of what was trained, for a drift or by hand, without a verdict yet; and whether it still serves.
        What was promoted by hand is a person's choice: that has a chain of its own.
        """
        for told in self.deployed:
            event = told.event
            if not isinstance(event, ModelDeployed) or told.id in self.judged:
                continue
            made = self._made.get(event.version)
            trained = made is not None and (made.id, made.root) == (event.caused_by, told.root)
            if event.reason == "drift" or (event.reason == "manual" and trained):
                return told, told is self.deployed[-1]
        return None

    def drifts_since(self, window: TrainingWindow) -> int:
        """Changes of a window's devices behind its end: drifts that a training on it has not healed, or new ones."""
        ends = {item.partition: item.end for item in window.ranges}
        return len(
            {
                (device, partition, offset)
                for device, partition, offset in self.drifted
                if holds(window, device) and offset >= ends.get(partition, offset + 1)
            }
        )

    def _joining(self, now: float) -> tuple[Envelope, ...]:
        order = sorted(
            (item for item in self.waiting.values() if item.wait.until <= now),
            key=lambda item: (item.wait.since, item.envelope.id),
        )
        return tuple(item.envelope for item in order)

    def _welcome(self, told: Envelope, ahead: Sequence[Envelope]) -> list[Envelope]:
        """Events of the queue that can be learned from together with `told`."""
        found: dict[str, Envelope] = {}
        for each in ahead:
            event = each.event
            known = each.id in self.settled or each.id in self.waiting or each.id == told.id
            if not isinstance(event, DriftDetected) or event.model != self.model or known:
                continue
            if self._refused(each, event) is None:
                found.setdefault(each.id, each)
                self._drifts.setdefault(each.id, each)  # as it will be known after a restart
        return list(found.values())

    def _asked(self, told: Envelope, event: RetrainRequested) -> Train | Decided:
        if event.action in ("hold", "release"):
            outcome = "holding" if event.action == "hold" else "released"
            return Decided(outcome, "manual", event.detail or f"asked for by {event.by}", (told.id,))
        if not self.registered and event.action == "now":
            detail = "there is no model yet; the first one is trained as soon as there are enough labelled readings"
            return Decided("refused", "no-model", detail, (told.id,))
        return Train(told.id, (), self.answered.get(told.id, 0), event)

    def _refused(self, told: Envelope, event: DriftDetected) -> Decided | None:
        """Why a drift does not need or deserve a training, whatever the time."""
        attempt = self.answered.get(told.id, 0)

        def no(outcome: str, reason: str, detail: str, cause: str | None = None, **numbers: float) -> Decided:
            return Decided(outcome, reason, detail, (told.id,), cause, numbers, attempt)

        if not self.registered:
            detail = "there is no model yet that this drift could have hurt; the first one learns from these readings"
            return no("deferred", "no-model", detail)
        if self.policy.mode in ("never", "periodic"):
            return no("ignored", "policy", f"the policy is `{self.policy.mode}`: drifts are told, not acted on")
        if self.policy.mode != "every-alarm" and (fault := self._faulty(event)) is not None:
            (channel, kind), (begin, end) = fault
            detail = f"{channel} of {event.device} is not measuring ({kind}); a sensor's fault is mended, not learned"
            times = {"fault.begin": begin} | ({} if end is None else {"fault.end": end})
            return no("ignored", "quality", detail, "sensor-fault", **times)
        covering = covered_by(event, self.standing)
        if covering is not None and self.policy.mode != "every-alarm":
            detail = f"version {covering.version} has learned from readings that came after this drift"
            return no("deferred", "covered", detail)
        return None

    def _faulty(self, event: DriftDetected) -> tuple[tuple[str, str], tuple[float, float | None]] | None:
        """The fault of the device during the time in which the drift was seen, if there was one."""
        for (device, channel, kind), (begin, end) in self.faults.items():
            over = (begin + FAULT_OPEN_S if end is None else end + FAULT_LINGERS_S) < event.change_ts
            if device == event.device and kind != "gap" and begin <= event.ts + FAULT_LINGERS_S and not over:
                return (channel, kind), (begin, end)
        return None

    def _blocked(self, now: float) -> tuple[str, str, dict[str, float]] | None:
        """Why no retraining may begin now, for the whole model: reason, detail, numbers."""
        policy = self.policy
        if self.held:
            return "hold", "somebody holds retrainings back; `driftloop retrain --release` lets them go on", {}
        if policy.mode == "every-alarm":
            return None
        today = [ts for ts in self.trainings if abs(now - ts) < DAY_S]
        if self.rejections >= policy.breaker_rejections and self._since_last(now) < policy.breaker_s:
            detail = (
                f"the last {self.rejections} trainings brought nothing; the next may begin after {policy.breaker_s:g} s"
            )
            return "breaker", detail, {"rejections": self.rejections, "since_last_s": round(self._since_last(now), 1)}
        if len(today) >= policy.daily_trainings:
            return "budget", f"{len(today)} trainings within a day", {"trainings": len(today)}
        cooldown = self._cooldown()
        if self.trainings and (elapsed := self._since_last(now)) < cooldown:
            detail = f"the last retraining ended {elapsed:.0f} s ago, the next may begin after {cooldown:g} s"
            return "cooldown", detail, {"since_last_s": round(elapsed, 1), "cooldown_s": cooldown}
        return None

    def _cooldown(self) -> float:
        """A training that could not tell is tried again sooner: it wants more windows of the same drift."""
        share = UNSURE_SHARE * 2 ** min(self.unsure - 1, 8) if self.unsure else 1.0
        return self.policy.cooldown_s * min(share, 1.0)

    def _since_last(self, now: float) -> float:
        """Seconds since the last training; a clock that was set back must not lock us out, so distance counts."""
        return abs(now - self.trainings[-1]) if self.trainings else float("inf")


def version_of(told: Envelope) -> str | None:
    """Of a deployment."""
    return told.event.version if isinstance(told.event, ModelDeployed) else None


def covered_by(drift: DriftDetected, history: Sequence[ModelRegistered]) -> ModelRegistered | None:
    """The version that has already learned from this device's readings up to the drift, if there is one."""
    for registered in reversed(history):
        window = registered.window
        if (
            holds(window, drift.device)
            and not over_before(window, drift)
            and any(
                item.partition == drift.position.partition and item.start <= drift.position.offset < item.end
                for item in window.ranges
            )
        ):
            return registered
    return None


def over_before(window: TrainingWindow, drift: DriftDetected) -> bool:
    """Whether a window ended before the change: if its offsets lie behind it all the same, they are another topic's."""
    return window.to_ts is not None and window.to_ts < drift.change_ts


def holds(window: TrainingWindow, device: str) -> bool:
    """Whether a training window has readings of the device."""
    if window.devices is not None:
        return device in window.devices
    return window.device in (None, device)
