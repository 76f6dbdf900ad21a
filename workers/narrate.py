"""Events in a sentence each, for people: what happened, to whom, by how much."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.markup import escape

from schemas.events import (
    DecisionMade,
    DriftDetected,
    Event,
    ModelDeployed,
    ModelRegistered,
    QualityDegraded,
    RetrainRequested,
    SwitchRequested,
    type_of,
)
from streams.eventlog import Logged

ACTIVITY_WORDS: Final = {
    "dws": "going downstairs",
    "ups": "going upstairs",
    "sit": "sitting",
    "std": "standing",
    "wlk": "walking",
    "jog": "jogging",
}
_UNITS: Final = {"mean": " g"}
_WHAT: Final = {
    "mean": "{feature}",
    "log-sd": "the strength of {feature} (log)",
    "rate-log-sd": "the speed of {feature} (log)",
    "value": "{feature}",
    "log-ratio": "the strength of {feature} against rotation (log)",
}
_FAULTS: Final = {
    "stuck": "its value is stuck",
    "out-of-range": "it is at the end of its range or beyond",
    "not-finite": "its values are no numbers",
    "rate": "readings do not come at 50 Hz, or come from two devices of one name",
    "gap": "readings are missing again and again",
}
REASONS: Final = {
    "no-model": "there is no model yet",
    "covered": "a newer model has already learned from these readings",
    "cooldown": "the last retraining has just ended",
    "budget": "there were enough retrainings today",
    "breaker": "the last trainings brought nothing",
    "hold": "somebody holds retrainings back",
    "policy": "the policy does not retrain on drifts",
    "uncertain": "too few windows show that it is better",
    "changed-mix": "only the mix of activities has changed",
    "first-model": "there is no model to beat yet",
    "better-on-recent": "it is better on the drifted data",
    "better-after": "it does better than the version before",
    "no-better": "it does no better than the version before",
    "worse-after": "it does worse than the version before",
    "superseded": "another version came before it could be told",
    "class-floor": "it forgets an activity",
    "too-few-rows": "too few labelled readings came after the drift",
    "no-labels": "the readings after the drift carry no labels",
    "one-activity": "all labelled readings show one activity",
    "no-snapshot": "its windows were not kept",
    "window-expired": "the readings it needs are past the topic's retention",
    "champion-unhurt": "the model in service is as good on the drifted data as before",
    "not-better": "no candidate is better on the drifted data",
    "forgets-anchor": "the best candidate forgets what was known before",
    "training-failed": "the training failed",
    "deadline": "the training took too long",
    "quality": "a sensor's fault is mended, not learned",
    "no-held-out-data": "too little was held out to compare on",
    "champion-unusable": "the model in service cannot be compared with",
    "older-version": "a newer version serves already",
    "unknown-version": "the registry does not know it",
    "digest-mismatch": "its files are not those that were registered",
    "unsafe-model": "loading it could run foreign code",
    "schema": "its name, version or digest is not well-formed",
    "crashed": "its server ended by itself",
    "not-ready": "its server did not become ready",
    "wrong-model": "another model answers at its address",
    "smoke": "it answers otherwise than when it was trained",
    "slow": "it answers too slowly",
    "silent": "it no longer answers",
    "unsigned": "nobody has signed it",
    "unknown-key": "whoever signed it is not trusted",
    "bad-signature": "it is not what was signed",
    "tag-taken": "another image has its name in the registry",
    "manual": "somebody asked for it",
    "no-way-back": "no version was in service before it",
    "not-serving": "another version serves",
    "serves-already": "it serves already",
}


def tell(event: Event) -> str:
    """One sentence without a final stop."""
    match event:
        case DriftDetected():
            return _drift(event)
        case QualityDegraded():
            over = "measures again" if event.ended else f"is not measuring: {_FAULTS[event.fault]}"
            return f"{event.device}: {'the device' if event.channel == '*' else event.channel} {over}"
        case ModelRegistered():
            return _registered(event)
        case ModelDeployed():
            swapped = f" in place of {event.previous}" if event.previous else ""
            return (
                f"version {event.version} answers at {event.endpoint}{swapped} "
                f"({event.target}, {event.smoke.requests} smoke requests, p50 {event.smoke.p50_ms:.0f} ms)"
            )
        case SwitchRequested() | RetrainRequested():
            return _asked(event)
        case DecisionMade():
            why = REASONS.get(event.reason, event.reason)
            return f"{event.about} {event.outcome}: {why} ({event.detail})"


def _asked(event: SwitchRequested | RetrainRequested) -> str:
    match event:
        case SwitchRequested():
            what = f"{event.action} of version{f' {event.version}' if event.version else ''} asked for"
        case RetrainRequested(action="now"):
            what = "a retraining asked for"
        case RetrainRequested(action="repeat"):
            what = f"a repetition of run {event.run_id} asked for"
        case _:
            what = f"retrainings {'held back' if event.action == 'hold' else 'released'}"
    return f"{what} by {event.by}" + (f": {event.detail}" if event.detail else "")


def _drift(event: DriftDetected) -> str:
    doing = f" while {ACTIVITY_WORDS[event.activity]}" if event.activity else ""
    what = _WHAT.get(event.statistic, "{feature}").format(feature=event.feature)
    unit = _UNITS.get(event.statistic, "")
    since = datetime.fromtimestamp(event.change_ts, UTC).strftime("%H:%M:%S")
    return (
        f"{event.device}{_cause(event)} {what} moved from {event.before:.2f} to {event.after:.2f}{unit}{doing}, "
        f"{event.effect:.1f} σ, since {since} ({event.severity})"
    )


def _cause(event: DriftDetected) -> str:
    """What explains the drift, as far as a test has estimated it."""
    estimate = event.estimate or {}
    causes = []
    if (degrees := estimate.get("rotation_deg")) is not None:
        causes.append(f"is carried differently: turned by about {degrees:.0f}°")
    if (gain := estimate.get("gain")) is not None:
        causes.append(f"measures acceleration {gain:.2f} times as strong")
    if not causes and event.test == "confidence":
        causes.append("makes the model less sure")
    return f" {' and '.join(causes)};" if causes else ":"


def _registered(event: ModelRegistered) -> str:
    won = next((item for item in event.candidates if item.name == event.winner), None)
    score = f", macro F1 {won.recent:.3f} on held-out data" if won and won.recent is not None else ""
    beaten = ""
    if event.champion is not None and event.champion.recent is not None:
        beaten = f" where version {event.champion.version} has {event.champion.recent:.3f}"
    return f"version {event.version}, a {event.winner}{score}{beaten}; {len(event.candidates)} candidates tried"


_COLOURS: Final = {
    "drift": "yellow",
    "decisions": "magenta",
    "model-registered": "cyan",
    "deployed": "green",
}


def line(logged: Logged) -> str:
    """A line with the time the broker got it, the topic, the sentence and the id, in rich's markup."""
    when = datetime.fromtimestamp(logged.written).astimezone().strftime("%H:%M:%S")
    colour = _COLOURS.get(logged.topic.name, "white")
    sentence = escape(tell(logged.envelope.event))
    return f"{when} [{colour}]{logged.topic.name:<16}[/] {sentence} [dim]{logged.envelope.id[:12]}[/]"


def plain(logged: Logged) -> dict[str, Any]:
    """The same as values: where it lies, its identity and its content."""
    enveloped = logged.envelope
    return {
        "topic": logged.topic.name,
        "partition": logged.partition,
        "offset": logged.offset,
        "written": logged.written,
        "id": enveloped.id,
        "type": type_of(enveloped.event),
        "source": enveloped.source,
        "subject": enveloped.subject,
        "time": enveloped.time.isoformat(),
        "data": msgspec.to_builtins(enveloped.event),
    }
