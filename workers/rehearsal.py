"""The loop rehearsed over a recording, without Kafka and MLflow: the same detector, controller, trainings and gate.

Event time is the clock; only a training takes what it takes here. So `driftloop backtest` says what the settings would
have done, and `tests/bench/healing` what retraining is worth.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schemas.activity import ACTIVITIES
from schemas.envelope import Envelope, envelope
from schemas.events import (
    DecisionMade,
    DriftDetected,
    ModelRegistered,
    OffsetRange,
    Position,
    QualityDegraded,
    TrainingWindow,
    event_id,
)
from schemas.settings import Settings
from streams.drift import Change
from streams.features import features
from streams.quality import Degraded
from streams.replay import Replayed
from streams.windows import NO_LABEL, Windows
from workers.controller import Controller, Decided, Policy, Train
from workers.dataset import PAST_SPAN, PAST_WINDOWS, STILL_S, Piece, anchor_sample, piece_of, ripe, unlearned_from
from workers.retrain_task import Decline, Declined
from workers.trial import Model, predicted, run_trial

STEP_S: Final = 5.0  # how often what waits is looked at
_TOPIC: Final = "rehearsal"


@dataclass(frozen=True, slots=True)
class Training:
    """One that was begun. begun, ended: event time; seconds: of computing; version: registered, if any."""

    lead: str
    begun: float
    pinned: float
    ended: float
    seconds: float
    outcome: str
    reason: str
    model: Model | None
    numbers: dict[str, float]


@dataclass(slots=True)
class Rehearsed:
    """What happened in a run. deployed: event time since when each version serves, the champion first."""

    detected: list[float] = field(default_factory=list)
    decisions: list[tuple[float, str, str, str | None]] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    deployed: list[tuple[float, Model]] = field(default_factory=list)
    skipped: int = 0  # trainings that were counted and not done


def _event(change: Change, device: str) -> DriftDetected:
    return DriftDetected(
        device=device,
        model=_TOPIC,
        feature=change.feature,
        statistic=change.statistic,
        detector="adwin",
        severity=change.severity,
        effect=change.effect,
        direction=change.direction,
        before=change.before,
        after=change.after,
        ts=change.ts,
        change_ts=change.change_ts,
        position=Position(_TOPIC, 0, change.offset),
        change_position=Position(_TOPIC, 0, change.change_offset),
        episode=f"{device}/{change.ts}",
        test=change.test,
        activity=change.activity,
        estimate=change.estimate,
    )


def _fault(fault: Degraded, device: str) -> QualityDegraded:
    return QualityDegraded(
        device=device,
        model=_TOPIC,
        channel=fault.channel,
        fault=fault.fault,
        ts=fault.ts,
        position=Position(_TOPIC, 0, fault.offset),
        ended=fault.ended,
    )


class _Loop:
    """One device's life. deploy_s: from a registration until the version serves."""

    def __init__(
        self,
        windows: Windows,
        device: str,
        champion: Model | None,
        anchor: Sequence[Piece],
        policy: Policy,
        settings: Settings,
        deploy_s: float,
        most: int,
    ) -> None:
        self.windows = windows
        self.device = device
        self.anchor = anchor_sample(anchor, settings.anchor_windows, settings.training_seed)
        self.settings = settings
        self.deploy_s = deploy_s
        self.most = most
        self.controller = Controller(_TOPIC, policy)
        self.done = Rehearsed(deployed=[] if champion is None else [(-np.inf, champion)])
        self.busy_until = -np.inf
        self._tell(self._registered("1", TrainingWindow(topic=_TOPIC, ranges=[], rows=0, sha256=""), []), 0.0)

    def _tell(self, event: ModelRegistered | DecisionMade, now: float) -> None:
        self.controller.see(envelope(event, id=event_id(now, event), source=_TOPIC, subject=_TOPIC, time=now))

    def _registered(self, version: str, window: TrainingWindow, caused_by: list[str]) -> ModelRegistered:
        return ModelRegistered(
            model=_TOPIC,
            version=version,
            run_id="",
            winner="",
            candidates=[],
            window=window,
            digest="",
            caused_by=caused_by,
        )

    def act(self, answer: Train | Decided | None, now: float) -> None:
        if isinstance(answer, Decided):
            said = Declined(answer.outcome, answer.reason, answer.detail, answer.numbers, answer.cause)
            self._decide(said, answer.concerns, now)
        elif isinstance(answer, Train):
            self._train(answer, now)

    def _decide(self, said: Declined, concerns: Sequence[str], now: float) -> None:
        self.done.decisions.append((now, said.outcome, said.reason, said.cause))
        self._tell(
            DecisionMade(
                model=_TOPIC,
                about="retrain",
                outcome=said.outcome,
                reason=said.reason,
                detail=said.detail,
                concerns=list(concerns),
                ts=now,
            ),
            now,
        )

    def _train(self, train: Train, now: float) -> None:
        if len(self.done.trainings) >= self.most:
            self.done.skipped += 1
            said = Declined("rejected", "not-better", "counted, not done")
            self._decide(said, [each.id for each in train.drifts] or [train.lead], now)
            return
        began, pinned_at = time.process_time(), now
        concerns = [each.id for each in train.drifts] or [train.lead]
        version = str(len(self.controller.registered) + 1)
        model, window = None, None
        try:
            pinned_at, window, recent = self._collected(train, now)
            if not self.done.deployed:
                self._count(train, now, pinned_at, window)
                return
            trial = run_trial(
                recent,
                self.anchor,
                self.done.deployed[-1][1],
                self.settings,
                seed=int(event_id(train.lead)[:7], 16),
                past=self._past(window),
                drifts=[each.event for each in train.drifts if isinstance(each.event, DriftDetected)],
                forced=self.controller.policy.mode != "driftloop",
            )
            cause = None if trial.triage is None else trial.triage.cause
            verdict = trial.verdict
            said = Declined(verdict.outcome, verdict.reason, verdict.detail, trial.numbers, cause)
            if verdict.promote:
                model = Model(version, trial.best.pipeline, trial.names)
        except Decline as decline:
            said = decline.declined
            pinned_at = self._latest(train, now) if "came within" in said.detail else pinned_at
        seconds = time.process_time() - began
        ended = pinned_at + seconds
        self.busy_until = ended
        self.done.trainings.append(
            Training(train.lead, now, pinned_at, ended, seconds, said.outcome, said.reason, model, said.numbers)
        )
        if model is None or window is None:
            self._decide(said, concerns, ended)
            return
        self.done.decisions.append((ended, said.outcome, said.reason, said.cause))
        self.anchor = anchor_sample([*self.anchor, recent], self.settings.anchor_windows, self.settings.training_seed)
        self.done.deployed.append((ended + self.deploy_s, model))
        self._tell(self._registered(version, window, concerns), ended)

    def _past(self, window: TrainingWindow) -> Piece | None:
        """As `workers.dataset.past`."""
        learned = [item.end for each in self.controller.registered for item in each.window.ranges]
        [item] = window.ranges
        start = max([item.start - PAST_SPAN * (item.end - item.start), *(end for end in learned if end <= item.start)])
        windows = self.windows
        rows = (windows.first_offset >= start) & (windows.last_offset < item.start) & (windows.labels != NO_LABEL)
        if rows.sum() < PAST_WINDOWS:
            return None
        try:
            return piece_of(Replayed(window, {self.device: windows.chosen(rows)}), self.settings)
        except Decline:
            return None

    def _count(self, train: Train, now: float, pinned_at: float, window: TrainingWindow) -> None:
        """A training that is taken for one that promotes, without being done."""
        self.busy_until = pinned_at
        self.done.trainings.append(
            Training(train.lead, now, pinned_at, pinned_at, 0.0, "promoted", "counted", None, {})
        )
        self.done.decisions.append((pinned_at, "promoted", "counted", None))
        version = str(len(self.controller.registered) + 1)
        self._tell(self._registered(version, window, [each.id for each in train.drifts]), pinned_at)

    def _latest(self, train: Train, now: float) -> float:
        """Until when readings are waited for."""
        return max(now, (now if train.since is None else train.since) + self.settings.collect_seconds)

    def _collected(self, train: Train, now: float) -> tuple[float, TrainingWindow, Piece]:
        """When enough had come, and what. Raises Decline."""
        previous = [each.window for each in self.controller.registered]
        drifts = [each.event for each in train.drifts if isinstance(each.event, DriftDetected)]
        ends = [item.end for window in previous for item in window.ranges]
        start = min((unlearned_from(drift, previous) for drift in drifts), default=max(ends, default=0))
        windows, settings = self.windows, self.settings
        rows = np.flatnonzero((windows.first_offset >= start) & (windows.labels != NO_LABEL))
        seen = windows.labels[rows, None] == np.arange(len(ACTIVITIES))
        may, full = ripe(np.cumsum(seen, 0), settings)
        ready, latest = np.inf, self._latest(train, now)
        if may.any():
            later = windows.end[rows[int(may.argmax()) :]]  # since it may be done
            still = np.flatnonzero(np.diff(later, append=np.inf) > STILL_S)[0]
            asked = float(later[still]) + STILL_S
            if full.any():
                asked = min(asked, float(windows.end[rows[int(full.argmax())]]))
            ready = max(now, min(asked, max(latest, float(later[0]))))
        if ready > latest:
            detail = f"{len(rows)} labelled windows came within {settings.collect_seconds:g} s of the drift"
            raise Decline("not-trained", "too-few-rows", detail, windows=len(rows))
        rows = rows[windows.end[rows] <= ready]
        end = int(windows.last_offset[rows[-1]]) + 1
        window = TrainingWindow(
            topic=_TOPIC, ranges=[OffsetRange(0, start, end)], rows=end - start, sha256="", device=self.device
        )
        return ready, window, piece_of(Replayed(window, {self.device: windows.chosen(rows)}), settings)


def rehearse(
    windows: Windows,
    found: Iterable[Change | Degraded],
    device: str,
    champion: Model | None,
    anchor: Sequence[Piece],
    policy: Policy,
    settings: Settings,
    *,
    deploy_s: float = 0.0,
    most: int = 10**9,
) -> Rehearsed:
    """A device's windows, with measures and values, and what a detector has said of them, through the loop.

    champion: what serves at first; without one trainings are counted, not done. anchor: what it has learned.
    most: trainings that are really done.
    """
    loop = _Loop(windows, device, champion, anchor, policy, settings, deploy_s, most)
    queue: list[Envelope] = []
    for number, item in enumerate(sorted(found, key=lambda each: each.ts)):
        event = _event(item, device) if isinstance(item, Change) else _fault(item, device)
        told = envelope(event, id=f"{device}/{number}", source=_TOPIC, subject=device, time=item.ts)
        queue.append(told)
        if isinstance(item, Change):
            loop.done.detected.append(item.ts)
    now, last = float(windows.start[0]), float(windows.end[-1])
    at = 0
    while now < last:
        now = max(now, loop.busy_until)
        while at < len(queue) and queue[at].time.timestamp() <= now and loop.busy_until <= now:
            ahead = [each for each in queue[at + 1 :] if each.time.timestamp() <= now]
            loop.controller.see(queue[at])
            loop.act(loop.controller.answer(queue[at], now, ahead), now)
            at += 1
        if loop.busy_until <= now:
            loop.act(loop.controller.due(now), now)
        upcoming = queue[at].time.timestamp() if at < len(queue) else np.inf
        waits = loop.controller.waiting or policy.mode == "periodic"
        now = max(now + 0.01, min(upcoming, now + STEP_S if waits else np.inf, last), loop.busy_until)
    return loop.done


def accuracy(model: Model, windows: Windows) -> float | None:
    """Share of the labelled windows that a model names right; None if there are none."""
    rows = np.flatnonzero(windows.labels != NO_LABEL)
    if not len(rows):
        return None
    answers = predicted(model.pipeline, features(windows.values[rows], model.columns))
    return float((answers == windows.labels[rows]).mean())
