"""When the deploy worker brings the current version back, and when it lets it be."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import pytest

from deploy.target import Deployment
from schemas.envelope import envelope
from schemas.errors import Reject, Retry
from schemas.events import ModelDeployed, ModelRegistered, Smoke, SwitchRequested, TrainingWindow
from schemas.settings import Settings
from workers import deploy
from workers.deploy import Deployer
from workers.health import Health

ENDPOINT = "http://127.0.0.1:1"
RUNNING = Deployment("process", "activity", "7", "sha256:7", ENDPOINT, "handle")
SERVING = ModelDeployed(
    model="activity",
    version="7",
    target="process",
    endpoint=ENDPOINT,
    smoke=Smoke(requests=1, p50_ms=1.0, p99_ms=1.0),
    reason="first",
    caused_by="c",
    digest="sha256:7",
)


class Target:
    """Holds one version, or none."""

    name = "process"

    def __init__(self) -> None:
        self.running: Deployment | None = RUNNING
        self.deleted: list[str] = []

    def find(self, model: str, version: str) -> Deployment | None:
        return self.running if version == RUNNING.version else None

    def list(self, model: str) -> tuple[Deployment, ...]:
        old = Deployment("process", "activity", "6", "sha256:6", ENDPOINT, "old")
        return (RUNNING, old)

    def delete(self, deployment: Deployment) -> None:
        self.deleted.append(deployment.version)


def registered(version):
    """What the topic says of a version."""
    event = ModelRegistered(
        model="activity",
        version=version,
        run_id="r",
        winner="w",
        candidates=[],
        window=TrainingWindow(topic="activity", ranges=[], rows=0, sha256=""),
        digest=f"sha256:{version}",
        caused_by=["drift"],
    )
    return envelope(event, id=f"registered-{version}", source="test", subject="", time=1.0)


@pytest.fixture
def deployer(tmp_path, monkeypatch):
    deployer = Deployer(Settings(_env_file=None, home=tmp_path, grace_seconds=0), Health("deploy"), Target(), None)
    deployer.serving, deployer.known, deployer.named = SERVING, True, ("7", None)
    deployer.answers = True
    monkeypatch.setattr(deploy, "is_itself", lambda _: deployer.answers)
    deployer.put = []

    monkeypatch.setattr(deployer, "_known", registered)

    def put(registered, *_):
        deployer.put.append(registered.version)
        return dataclasses.replace(RUNNING, version=registered.version, digest=registered.digest), SERVING.smoke

    monkeypatch.setattr(deployer, "_put", put)
    return deployer


def mend(deployer):
    return deployer._mend(lambda: False)


def test_a_version_that_answers_as_itself_is_let_be(deployer):
    """Mending what is not broken would interrupt requests every few seconds."""
    assert mend(deployer) == []
    assert deployer.put == []


@pytest.mark.parametrize("broken", ["gone", "another program at its address"])
def test_a_version_that_is_gone_is_brought_back_at_once(deployer, broken):
    """Every second without it is a failed request."""
    if broken == "gone":
        deployer.target.running = None
    deployer.answers = False
    mend(deployer)
    assert deployer.put == ["7"]


def test_a_version_that_stays_silent_is_brought_back_after_some_looks_and_a_slow_one_is_not(deployer):
    """A frozen process looks alive for ever; one that is busy for a moment must not be killed for it."""
    for answers in (None, None, None, True, None, None, None):
        deployer.answers = answers
        mend(deployer)
    assert deployer.put == []
    mend(deployer)
    assert deployer.put == ["7"]


def test_a_version_that_cannot_be_brought_back_is_tried_again_and_nothing_stops(deployer, monkeypatch):
    """Its files may be damaged in the registry; the worker must live on to deploy the next version."""
    deployer.target.running = None

    def refused(*_):
        raise Reject("digest-mismatch", "a byte changed")

    monkeypatch.setattr(deployer, "_put", refused)
    with pytest.raises(Retry, match="version 7 should serve and cannot be brought back: digest-mismatch"):
        mend(deployer)


def test_a_champion_that_was_deleted_from_the_registry_by_hand_serves_on(deployer, monkeypatch):
    """Names in MLflow follow what serves, not the other way round; the old version is retired all the same."""

    def unknown(*_):
        raise Reject("unknown-version", "MLflow: not found")

    monkeypatch.setattr(deploy.registry, "set_champion", unknown)
    deployer.named = None
    assert mend(deployer) == []
    assert deployer.target.deleted == ["6"]


def test_an_old_version_is_kept_until_the_router_sends_nothing_there(deployer, monkeypatch):
    """Stopping it earlier would fail the requests of a router that is behind."""
    deployer.settings = deployer.settings.model_copy(update={"router_port": 1})
    mend(deployer)
    assert deployer.target.deleted == []


# -- the way back -----------------------------------------------------------------------------------------------------


def deployed(version, *, reason="drift", at=None):
    event = msgspec.structs.replace(SERVING, version=version, digest=f"sha256:{version}", reason=reason)
    return envelope(event, id=f"deployed-{version}-{reason}", source="test", subject="", time=at or time.time())


class Bake:
    """A watch that finds this."""

    version = "7"

    def __init__(self, why):
        self.why = why

    def look(self, *_):
        return self.why


@pytest.fixture
def baking(deployer):
    """Version 7 has just replaced version 6."""
    deployer.history = [deployed("6"), deployed("7")]
    deployer.cases = {"7": None}
    deployer.named = ("7", "6")
    deployer.bake = Bake(None)
    return deployer


def told(outputs):
    return [(output.topic.name, output.event.event) for output in outputs]


@pytest.mark.parametrize("reason", ["crashed", "slow", "smoke", "silent"])
def test_a_new_version_that_fails_under_watch_is_left_for_the_one_before(baking, reason):
    """Nobody is awake at night to do it; the version before is known to work."""
    baking.bake = Bake(Reject(reason, "its last line"))
    (one, two, three) = told(mend(baking))
    assert (one[0], two[0], three[0]) == ("deployed", "current-model", "decisions")
    assert one[1] == two[1]
    assert (one[1].version, one[1].previous, one[1].reason) == ("6", "7", "rollback")
    assert (three[1].about, three[1].outcome, three[1].reason) == ("rollback", "rolled-back", reason)
    assert baking.put == ["6"]


def test_going_back_needs_nothing_but_the_version_that_still_runs(baking):
    """MLflow may be away just then, and starting takes time."""
    six = Deployment("process", "activity", "6", "sha256:6", ENDPOINT, "old")
    baking.target.find = lambda _, version: six if version == "6" else RUNNING
    baking.bake = Bake(Reject("slow", ""))
    assert told(mend(baking))[0][1].version == "6"
    assert baking.put == []


def test_the_version_before_is_kept_while_the_new_one_is_under_watch_and_goes_afterwards(baking):
    """It is the way back; but two versions are not paid for for ever."""
    mend(baking)
    assert baking.target.deleted == []
    baking.history = [deployed("6", at=1.0), deployed("7", at=2.0)]
    mend(baking)
    assert baking.target.deleted == ["6"]


def test_a_version_that_crashes_later_is_brought_back_and_not_left(baking):
    """After the bake a crash says more about the machine than about the version."""
    baking.history = [deployed("6", at=1.0), deployed("7", at=2.0)]
    baking.bake = Bake(Reject("crashed", ""))
    baking.target.running = None
    assert mend(baking) == []
    assert baking.put == ["7"]


def test_a_version_that_was_left_is_not_deployed_again_by_its_old_event(baking):
    """A replayed topic must not put the version back that was just found broken."""
    baking.history.append(deployed("6", reason="rollback"))
    baking.serving = baking.history[-1].event
    (output,) = baking.start(registered("7")).poll()
    assert (output.event.event.outcome, output.event.event.reason) == ("skipped", "older-version")


def asked(action, version=None):
    event = SwitchRequested(model="activity", action=action, version=version, by="me")
    return envelope(event, id="request", source="test", subject="", time=1.0)


def finished(job):
    for _ in range(500):
        if (outputs := job.poll()) is not None:
            return told(outputs)
        time.sleep(0.01)
    raise AssertionError("the job does not end")


def test_a_hand_can_go_back_whenever_it_wants(baking):
    """Whoever watches the system may know more than its checks; also long after the switch."""
    baking.history = [deployed("6", at=1.0), deployed("7", at=2.0)]
    outputs = finished(baking.start(asked("rollback", "7")))
    assert (outputs[0][1].version, outputs[0][1].reason) == ("6", "rollback")
    assert outputs[2][1].reason == "manual"


def test_going_back_from_a_version_that_no_longer_serves_does_nothing(baking):
    """The request is late, and the version that serves now is another one."""
    ((_, decision),) = finished(baking.start(asked("rollback", "5")))
    assert (decision.about, decision.outcome, decision.reason) == ("rollback", "skipped", "not-serving")


def test_a_first_version_has_no_way_back(deployer):
    deployer.history = [deployed("7")]
    ((_, decision),) = finished(deployer.start(asked("rollback")))
    assert (decision.outcome, decision.reason) == ("refused", "no-way-back")


def test_a_hand_can_promote_an_older_version(baking):
    """The guard against old events is not one against people."""
    baking.registered = {"3": registered("3")}
    outputs = finished(baking.start(asked("promote", "3")))
    assert (outputs[0][1].reason, outputs[0][1].caused_by) == ("manual", "registered-3")
    assert baking.put == ["3"]


@pytest.mark.parametrize(("root", "reason"), [("an episode", "drift"), ("drift", "manual")])
def test_a_training_that_somebody_asked_for_is_told_as_theirs(baking, root, reason):
    """`driftloop retrain --now`: the request that it names as its cause began the chain; a drift did not."""
    outputs = finished(baking.start(dataclasses.replace(registered("8"), root=root)))
    assert outputs[0][1].reason == reason


@pytest.mark.parametrize(("version", "reason"), [("9", "unknown-version"), ("7", "serves-already")])
def test_what_cannot_be_promoted_is_said(baking, version, reason):
    baking.registered = {"7": registered("7")}
    ((_, decision),) = finished(baking.start(asked("promote", version)))
    assert (decision.about, decision.reason) == ("promote", reason)
