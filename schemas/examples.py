"""One example of everything that travels on a topic, for the golden files and the AsyncAPI document.

An entry stays when its version is no longer sent: it says how today's code reads what was sent then.
"""

from __future__ import annotations

from typing import Final

from schemas.activity import Reading, ReadingBatch
from schemas.envelope import Envelope, envelope
from schemas.events import (
    CandidateScore,
    ChampionScore,
    DecisionMade,
    DriftDetected,
    ModelDeployed,
    ModelRegistered,
    OffsetRange,
    Position,
    QualityDegraded,
    RetrainRequested,
    Smoke,
    SwitchRequested,
    TrainingWindow,
    WindowStatistics,
    event_id,
)

_DRIFT_ID: Final = event_id("example", "drift")
_QUALITY_ID: Final = event_id("example", "quality")
_REGISTERED_ID: Final = event_id("example", "registered")
_DEPLOYED_ID: Final = event_id("example", "deployed")
_SWITCH_ID: Final = event_id("example", "switch")
_RETRAIN_ID: Final = event_id("example", "retrain")
_DECISION_ID: Final = event_id("example", "decision")

EVENTS: Final[dict[str, Envelope]] = {
    "driftloop.drift.detected.v1": envelope(
        DriftDetected(
            device="phone-07",
            model="activity",
            feature="userAcceleration.x",
            statistic="mean",
            activity="wlk",
            detector="adwin",
            severity="warning",
            effect=2.1,
            direction="up",
            before=0.04,
            after=0.31,
            ts=1700000312.9,
            change_ts=1700000241.4,
            position=Position("activity", 2, 81231),
            change_position=Position("activity", 2, 77655),
            model_version="7",
            episode="e3b0c44298fc1c14",
            test="gain",
            estimate={"gain": 1.5},
        ),
        id=_DRIFT_ID,
        source="driftloop/agent",
        subject="phone-07",
        time=1700000312.9,
    ),
    "driftloop.quality.degraded.v1": envelope(
        QualityDegraded(
            device="phone-07",
            model="activity",
            channel="rotationRate.z",
            fault="stuck",
            ts=1700000320.5,
            position=Position("activity", 2, 81611),
        ),
        id=_QUALITY_ID,
        source="driftloop/agent",
        subject="phone-07",
        time=1700000320.5,
    ),
    "driftloop.retrain.requested.v1": envelope(
        RetrainRequested(model="activity", action="repeat", run_id="9f2c1e7d5b6a4f3c8e0d1a2b3c4d5e6f", by="ops"),
        id=_RETRAIN_ID,
        source="driftloop/cli",
        subject="activity",
        time=1700000330.0,
    ),
    "driftloop.model.registered.v1": envelope(
        ModelRegistered(
            model="activity",
            version="8",
            run_id="9f2c1e7d5b6a4f3c8e0d1a2b3c4d5e6f",
            winner="random-forest",
            candidates=[
                CandidateScore(name="random-forest", recent=0.93, anchor=0.95, fit_seconds=2.1),
                CandidateScore(name="logistic-regression", recent=0.81, anchor=None, fit_seconds=0.4),
            ],
            champion=ChampionScore(version="7", recent=0.61, anchor=0.95),
            window=TrainingWindow(
                topic="activity", ranges=[OffsetRange(2, 77655, 91231)], rows=13576, sha256=event_id("rows") * 2
            ),
            digest="sha256:" + event_id("digest") * 2,
            signature="MEUCIQDexample",
            key_id="example-key",
            caused_by=[_DRIFT_ID],
        ),
        id=_REGISTERED_ID,
        source="driftloop/retrain",
        subject="activity/8",
        time=1700000410.0,
        root=_DRIFT_ID,
    ),
    "driftloop.switch.requested.v1": envelope(
        SwitchRequested(
            model="activity", action="rollback", version="8", by="ops", detail="it confuses stairs with walking"
        ),
        id=_SWITCH_ID,
        source="driftloop/cli",
        subject="activity",
        time=1700000500.0,
    ),
    "driftloop.model.deployed.v1": envelope(
        ModelDeployed(
            model="activity",
            version="8",
            previous="7",
            target="process",
            endpoint="http://127.0.0.1:18008",
            smoke=Smoke(requests=20, p50_ms=11.0, p99_ms=25.0),
            reason="drift",
            caused_by=_REGISTERED_ID,
            digest="sha256:" + event_id("digest") * 2,
            image="registry.example/activity@sha256:" + event_id("image") * 2,
        ),
        id=_DEPLOYED_ID,
        source="driftloop/deploy",
        subject="activity/8",
        time=1700000440.25,
        root=_DRIFT_ID,
    ),
    "driftloop.decision.made.v1": envelope(
        DecisionMade(
            model="activity",
            about="retrain",
            outcome="deferred",
            reason="cooldown",
            detail="the last retraining ended 40 s ago, the next may begin after 600 s",
            concerns=[_DRIFT_ID],
            ts=1700000313.0,
            numbers={"since_last_s": 40.0, "cooldown_s": 600.0},
        ),
        id=_DECISION_ID,
        source="driftloop/retrain",
        subject="activity",
        time=1700000313.0,
        root=_DRIFT_ID,
    ),
}

READING: Final = Reading(
    device="phone-07",
    ts=1700000000.02,
    seq=1042,
    attitude_roll=1.528,
    attitude_pitch=-0.733,
    attitude_yaw=0.696,
    userAcceleration_x=0.294,
    userAcceleration_y=-0.184,
    userAcceleration_z=0.377,
    gravity_x=0.741,
    gravity_y=0.669,
    gravity_z=-0.031,
    rotationRate_x=0.316,
    rotationRate_y=0.778,
    rotationRate_z=1.082,
    subject="7",
    weight=72.0,
    height=178.0,
    age=35.0,
    gender=1,
    trial=1,
    act="wlk",
)
READING_BATCH: Final = ReadingBatch(
    device="phone-07",
    ts=[1700000000.02, 1700000000.04],
    seq=[1042, 1043],
    attitude_roll=[1.528, 1.5279],
    attitude_pitch=[-0.733, -0.7342],
    attitude_yaw=[0.696, 0.6957],
    userAcceleration_x=[0.294, 0.219],
    userAcceleration_y=[-0.184, -0.191],
    userAcceleration_z=[0.377, 0.336],
    subject="7",
    act=["wlk", None],
)
WINDOW_STATISTICS: Final = WindowStatistics(
    device="phone-07",
    statistics=["userAcceleration.x mean", "userAcceleration.x log-sd"],
    ends=[1700000002.56, 1700000007.68],
    values=[[0.04, -1.2], [0.05, -1.1]],
    activities=["wlk", None],
)
READINGS: Final[dict[str, Reading | ReadingBatch]] = {"reading": READING, "reading-batch": READING_BATCH}
PLAIN: Final = {**READINGS, "window-statistics": WINDOW_STATISTICS}
