"""The events of the loop, each a value on a topic of its own; names and meaning are public contracts.

Event ids are deterministic (`event_id`): the same input gives the same id after any crash, so a consumer may
drop an id that it has seen.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec

from schemas.activity import Activity

Severity = Literal["info", "warning", "critical"]
Direction = Literal["up", "down"]
Test = Literal["adwin", "statistic", "gain", "rotation", "confidence", "error"]
Fault = Literal["stuck", "not-finite", "out-of-range", "rate", "gap"]
DeployReason = Literal["first", "drift", "manual", "rollback"]
SwitchAction = Literal["promote", "rollback"]
RetrainAction = Literal["now", "repeat", "hold", "release"]
About = Literal["retrain", "promote", "deploy", "rollback", "verdict"]

Ts = Annotated[float, msgspec.Meta(description="Seconds since the epoch.")]
Score = Annotated[float, msgspec.Meta(ge=0, le=1, description="Macro F1 on held-out data.")]
Offset = Annotated[int, msgspec.Meta(ge=0)]
Version = Annotated[str, msgspec.Meta(min_length=1, description="MLflow's version number; never an alias.")]


class Position(msgspec.Struct, frozen=True):
    """One record of a Kafka topic."""

    topic: str
    partition: int
    offset: Offset


class OffsetRange(msgspec.Struct, frozen=True):
    """Records start ≤ offset < end of one partition."""

    partition: int
    start: Offset
    end: Offset


class DriftDetected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A feature of one device no longer behaves as it did.

    before, after: means of the statistic on either side of the change point, in the statistic's unit.
    effect: their distance in reference standard deviations. ts, change_ts: event time.
    test: what confirmed it; estimate: what that test estimates (`gain`, `rotation_deg`), if anything.
    """

    device: str
    model: str
    feature: str
    statistic: str
    detector: str
    severity: Severity
    effect: float
    direction: Direction
    before: float
    after: float
    ts: Ts
    change_ts: Ts
    position: Position
    change_position: Position
    episode: str
    test: Test
    activity: Activity | None = None
    model_version: str | None = None
    estimate: dict[str, float] | None = None


class QualityDegraded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A channel of one device is not measuring; it never starts a retrain. ended: the fault is over."""

    device: str
    model: str
    channel: str
    fault: Fault
    ts: Ts
    position: Position
    ended: bool = False


class CandidateScore(msgspec.Struct, frozen=True, kw_only=True):
    """One trained candidate; recent: on the drifted window, anchor: on data from before, null where there is none."""

    name: str
    recent: Score | None
    anchor: Score | None
    fit_seconds: float


class ChampionScore(msgspec.Struct, frozen=True, kw_only=True):
    """The version that served when the candidates were judged, on the same held-out windows."""

    version: Version
    recent: Score | None
    anchor: Score | None


class TrainingWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which records a model learned from: those of one device in the ranges, of several, or of all.

    rows: readings in them; sha256: over the records' values in offset order. from_ts, to_ts: event time of the first
    and last reading in labelled windows; windows: how many these are, activities: of each; reading: their schema.
    """

    topic: str
    ranges: list[OffsetRange]
    rows: int
    sha256: str
    device: str | None = None
    devices: list[str] | None = None
    from_ts: Ts | None = None
    to_ts: Ts | None = None
    windows: int | None = None
    activities: dict[str, int] | None = None
    reading: str | None = None


class ModelRegistered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A better model is in the registry. digest: sha256 over the manifest of the model's file digests.

    profile: which of these files is the reference profile that drift is judged against, if there is one.
    """

    model: str
    version: Version
    run_id: str
    winner: str
    candidates: list[CandidateScore]
    window: TrainingWindow
    digest: str
    caused_by: list[str]
    champion: ChampionScore | None = None
    signature: str | None = None
    key_id: str | None = None
    profile: str | None = None


class Smoke(msgspec.Struct, frozen=True, kw_only=True):
    """What the smoke requests before the switch took."""

    requests: int
    p50_ms: float
    p99_ms: float


class ModelDeployed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version answers requests. endpoint: this version's own address, behind the router's stable one."""

    model: str
    version: Version
    target: str
    endpoint: str
    smoke: Smoke
    reason: DeployReason
    caused_by: str
    digest: str
    previous: Version | None = None
    image: str | None = None


class SwitchRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody wants another version in service. promote: this version; rollback: the one that served before.

    version: with promote the version to serve, with rollback the one to leave (if another serves, nothing is done).
    by: who asks. detail: why, for people.
    """

    model: str
    action: SwitchAction
    by: str
    version: Version | None = None
    detail: str = ""


class RetrainRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody has a hand on the retraining. now: train on what has come since; repeat: a training of before, on the
    very same bytes (run_id); hold, release: no trainings from here on, and again.

    device: with now, only its readings. by: who asks. detail: why, for people.
    """

    model: str
    action: RetrainAction
    by: str
    run_id: str | None = None
    device: str | None = None
    detail: str = ""


class DecisionMade(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided, above all what was *not* done, with its reason. concerns: ids of the events it is about.

    cause: what the drift is held for (sensor-fault, changed-mix, new-device, carrying, sensor, model-error, unknown).
    numbers: the evidence.
    """

    model: str
    about: About
    outcome: str
    reason: str
    detail: str
    concerns: list[str]
    ts: Ts
    numbers: dict[str, float] | None = None
    cause: str | None = None


class WindowStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the detector sees of some windows of one device, oldest first; plain JSON without an envelope.

    ends: event time of each window's last reading. statistics: names of the columns, as `feature kind`. values: a row
    for each window, in the statistic's unit. activities: what each window was labelled, if it was.
    """

    device: str
    statistics: list[str]
    ends: list[Ts]
    values: list[list[float]]
    activities: list[Activity | None]


Event = (
    DriftDetected
    | QualityDegraded
    | RetrainRequested
    | ModelRegistered
    | SwitchRequested
    | ModelDeployed
    | DecisionMade
)

EVENT_TYPES: Final[dict[str, type[Event]]] = {
    "driftloop.drift.detected.v1": DriftDetected,
    "driftloop.quality.degraded.v1": QualityDegraded,
    "driftloop.retrain.requested.v1": RetrainRequested,
    "driftloop.model.registered.v1": ModelRegistered,
    "driftloop.switch.requested.v1": SwitchRequested,
    "driftloop.model.deployed.v1": ModelDeployed,
    "driftloop.decision.made.v1": DecisionMade,
}


def type_of(event: Event) -> str:
    """The CloudEvents type of an event."""
    return next(name for name, cls in EVENT_TYPES.items() if cls is type(event))


def event_id(*parts: object) -> str:
    """32 hex digits that are the same for the same parts."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]
