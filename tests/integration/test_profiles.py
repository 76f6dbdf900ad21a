"""The reference profile from a real MLflow into the agent's detectors."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.modelfiles import verify
from schemas.activity import CHANNEL_NAMES
from schemas.envelope import envelope
from schemas.examples import EVENTS
from schemas.topology import CURRENT_MODEL
from streams import topics
from streams.confirmed import Confirmed
from streams.measures import COUNT
from streams.profile import decode, encode, learn
from tests.integration.worker_processes import changed, registered_version, send
from workers import registry
from workers.backtest_policies import profile_in_service
from workers.profiles import Profiles


@pytest.fixture
def ready(settings, mlflow_uri, tmp_path):
    return changed(settings, model=f"m{uuid.uuid4().hex[:8]}", home=tmp_path)


def profile():
    rng = np.random.default_rng(1)
    devices, bouts = np.repeat(["a", "b"], 60), np.repeat(np.arange(12), 10)
    return encode(learn(rng.normal(size=(120, COUNT)), np.zeros(120, int), devices, bouts, channels=CHANNEL_NAMES))


def in_force(kind):
    """The profile that the next windows are measured by."""
    kind.measure(np.empty((0, 128, 12)))
    return kind.profile


def test_the_profile_of_a_version_comes_into_force_and_is_kept_on_disk(ready):
    """A restart while MLflow is away goes on as before; a version without a profile leaves the last one."""
    made = registered_version(ready, "a", profile=profile())
    folder = Path(ready.home) / "files"
    folder.mkdir()
    files = registry.download(registry.connect(ready), f"models:/{ready.model}/{made.version}", folder)
    verify(files, made.digest)  # the deploy worker and the server still take the model
    kind = Confirmed()
    profiles = Profiles(ready, kind)
    assert profiles.take(made.version, made.digest)
    assert in_force(kind).startswith(f"{made.version}:")
    without = registered_version(ready, "b")
    assert profiles.take(without.version, without.digest)
    assert in_force(kind).startswith(f"{made.version}:")
    away, again = changed(ready, mlflow_tracking_uri="http://127.0.0.1:1"), Confirmed()
    assert Profiles(away, again).take(made.version, made.digest)
    assert in_force(again) == in_force(kind)


def test_a_profile_that_cannot_be_used_leaves_the_one_in_force(ready):
    """Written by another version of Driftloop, or damaged: nobody is judged by numbers that mean something else."""
    kind = Confirmed()
    made = registered_version(ready, "a", profile=b'{"format": 99}')
    assert Profiles(ready, kind).take(made.version, made.digest)
    assert in_force(kind) == ""


def test_a_topic_is_played_back_with_the_profile_of_the_version_that_serves(ready):
    """As the agent judges it: without one, devices that send no labels would be judged by nothing."""
    topics.create(ready)
    assert profile_in_service(ready) is None
    made = registered_version(ready, "a", profile=profile())
    serves = msgspec.structs.replace(
        EVENTS["driftloop.model.deployed.v1"].event, model=ready.model, version=made.version, digest=made.digest
    )
    send(ready, CURRENT_MODEL, envelope(serves, id="d", source="test", subject="", time=1.0))
    assert profile_in_service(ready) == decode(profile())
