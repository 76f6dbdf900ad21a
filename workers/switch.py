"""`driftloop model`: the versions as the topics tell of them, and a hand on the wheel.

A request is an event like any other: it stands in the topic's order, the deploy worker answers it with an event, and
both stay for whoever asks later why a version serves.
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Producer

from deploy import wayback
from schemas.envelope import Envelope, encode, envelope
from schemas.errors import Retry
from schemas.events import (
    DecisionMade,
    Event,
    ModelDeployed,
    ModelRegistered,
    RetrainAction,
    RetrainRequested,
    SwitchAction,
    SwitchRequested,
)
from schemas.settings import Settings
from schemas.topology import DECISIONS, DEPLOYED, DRIFT, MODEL_REGISTERED, Topic
from streams.eventlog import read_events
from streams.kafka import producer_config
from workers.narrate import tell

SOURCE = "driftloop/cli"


@dataclass(frozen=True, slots=True)
class Version:
    """One version. recent: the winner's macro F1 on the drifted window. registered: seconds since the epoch."""

    version: str
    state: str
    winner: str
    recent: float | None
    registered: float
    key_id: str | None
    image: str | None


def versions(settings: Settings) -> list[Version]:
    """All versions, oldest first. state: serving, way back, left, retired or registered. Raises Retry."""
    told = [each.envelope for each in read_events(settings, [MODEL_REGISTERED, DEPLOYED]) if each is not None]
    history = [
        each.event for each in told if isinstance(each.event, ModelDeployed) and each.event.model == settings.model
    ]
    force, back = wayback.in_force(history), wayback.way_back(history)
    serving = force[-1].version if force else None
    images = {each.version: each.image for each in history}
    found: dict[str, Version] = {}
    for each in told:
        event = each.event
        if not isinstance(event, ModelRegistered) or event.model != settings.model or event.version in found:
            continue
        state = "registered"
        if event.version in images:
            state = "retired" if event.version in {item.version for item in force} else "left"
        if event.version == serving:
            state = "serving"
        elif back is not None and event.version == back.version:
            state = "way back"
        recent = next((item.recent for item in event.candidates if item.name == event.winner), None)
        found[event.version] = Version(
            event.version,
            state,
            event.winner,
            recent,
            each.time.timestamp(),
            event.key_id,
            images.get(event.version),
        )
    return list(found.values())


def ask(settings: Settings, action: SwitchAction, version: str | None, detail: str = "", *, seconds: float) -> Envelope:
    """The deploy worker's answer: a ModelDeployed, or a DecisionMade that says why nothing was done.

    Raises Retry if the request is not acknowledged, or not answered within so many seconds.
    """
    wanted = SwitchRequested(model=settings.model, action=action, by=getpass.getuser(), version=version, detail=detail)
    return request(settings, MODEL_REGISTERED, wanted, [DEPLOYED, DECISIONS], "deploy", seconds)


def ask_retraining(
    settings: Settings,
    action: RetrainAction,
    *,
    run_id: str | None = None,
    device: str | None = None,
    detail: str = "",
    seconds: float,
) -> Envelope:
    """The retrain worker's answer: a ModelRegistered, or a DecisionMade. Raises Retry as `ask` does."""
    wanted = RetrainRequested(
        model=settings.model, action=action, by=getpass.getuser(), run_id=run_id, device=device, detail=detail
    )
    return request(settings, DRIFT, wanted, [MODEL_REGISTERED, DECISIONS], "retrain", seconds)


def request(
    settings: Settings, topic: Topic, wanted: Event, answers: Sequence[Topic], worker: str, seconds: float
) -> Envelope:
    """The first event of those topics that answers a request. Raises Retry as `ask` does."""
    began = time.time()
    told = envelope(wanted, id=uuid.uuid4().hex, source=SOURCE, subject=settings.model, time=began)
    key, value, headers = encode(told)
    producer = Producer(producer_config(settings))
    lost: list[str] = []
    producer.produce(
        settings.topic(topic),
        key=key,
        value=value,
        headers=headers,
        on_delivery=lambda error, _: lost.append(error.str()) if error else None,
    )
    if producer.flush(10) or lost:
        raise Retry(f"the request was not taken by Kafka: {lost or 'no answer within 10 s'}")
    # By the root, which the request begins; the broker's clock may be a little behind ours.
    for logged in read_events(settings, answers, follow=True, since=began - 60):
        if logged is not None and logged.envelope.root == told.id:
            return logged.envelope
        if logged is None and time.time() - began > seconds:
            break
    raise Retry(f"the {worker} worker has not answered request {told.id} within {seconds:g} s; it stands, however")


def answered(answer: Envelope) -> tuple[bool, str]:
    """Whether the request was granted, and the answer as a sentence."""
    granted = isinstance(answer.event, ModelDeployed) or (
        isinstance(answer.event, DecisionMade) and answer.event.outcome == "rolled-back"
    )
    return granted, tell(answer.event)
