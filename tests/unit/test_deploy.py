"""When the deploy worker brings the current version back, and when it lets it be."""

from __future__ import annotations

import pytest

from deploy.target import Deployment
from schemas.errors import Reject, Retry
from schemas.events import ModelDeployed, Smoke
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
        return self.running

    def list(self, model: str) -> tuple[Deployment, ...]:
        old = Deployment("process", "activity", "6", "sha256:6", ENDPOINT, "old")
        return (RUNNING, old)

    def delete(self, deployment: Deployment) -> None:
        self.deleted.append(deployment.version)


@pytest.fixture
def deployer(tmp_path, monkeypatch):
    deployer = Deployer(Settings(_env_file=None, home=tmp_path, grace_seconds=0), Health("deploy"), Target(), None)
    deployer.serving, deployer.known, deployer.named = SERVING, True, "7"
    deployer.answers = True
    monkeypatch.setattr(deploy, "is_itself", lambda _: deployer.answers)
    deployer.put = []

    def put(version, *_):
        deployer.put.append(version)
        return RUNNING, SERVING.smoke

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
