"""A reference profile is data from elsewhere: what it may be, and that nothing else gets in."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from schemas.activity import CHANNEL_NAMES
from schemas.errors import Reject
from streams.measures import COUNT
from streams.profile import Classifier, Linear, decode, encode, learn

SINGULAR = np.zeros((COUNT, COUNT)).tolist()


def profile(**more):
    rng = np.random.default_rng(1)
    made = learn(
        rng.normal(size=(240, COUNT)),
        np.repeat([0, 1], 120),
        np.tile(np.repeat(["a", "b"], 60), 2),
        np.repeat(np.arange(24), 10),
        channels=CHANNEL_NAMES,
        classifier=Linear(["|userAcceleration|.log_mean"], [[1.0, -1.0]], [0.0, 0.0], ["sit", "wlk"]),
    )
    return msgspec.structs.replace(made, **more)


def test_a_profile_survives_its_file():
    """Training writes it, the agent reads it."""
    assert decode(encode(profile())) == profile()
    assert set(profile().activities) == {"dws", "ups"}
    without_gyroscope = profile(channels=[name for name in CHANNEL_NAMES if "rotationRate" not in name])
    assert decode(encode(without_gyroscope)) == without_gyroscope


@pytest.mark.parametrize(
    "broken",
    [
        b"\x80\x04not json",
        b"{}",
        encode(profile(format=2)),
        encode(profile(statistics=["other"])),
        encode(profile(channels=[name for name in CHANNEL_NAMES if name != "attitude.yaw"])),
        encode(profile(classifier=Linear(["no such feature"], [[1.0]], [0.0], ["sit"]))),
        encode(profile(classifier=Linear([], [[1.0]], [0.0], ["sit"]))),
        encode(profile(activities={"sit": msgspec.structs.replace(profile().activities["dws"], mean=[0.0])})),
        encode(
            profile(
                activities={
                    "sit": msgspec.structs.replace(
                        profile().activities["dws"], between=np.zeros((COUNT, COUNT)).tolist()
                    )
                }
            )
        ),
    ],
)
def test_another_version_s_profile_or_a_damaged_one_is_refused(broken):
    """The one in force then stands; no device is judged by numbers that mean something else."""
    with pytest.raises(Reject) as error:
        decode(broken)
    assert error.value.reject_class == "profile"


def test_an_activity_that_the_classifier_never_saw_has_no_probability():
    """And the others share it among themselves."""
    found = Classifier(profile().classifier).of_features(np.array([[0.0], [50.0]]))
    assert found[0] == pytest.approx([0, 0, 0.5, 0, 0.5, 0])
    assert found.sum(1) == pytest.approx(1)


def test_the_spread_of_people_is_that_of_their_own_centres():
    """Two people who lie far apart are no wide bouts."""
    rng = np.random.default_rng(2)
    far = rng.normal(0, 0.01, (200, COUNT)) + np.repeat([0.0, 10.0], 100)[:, None]
    reference = learn(
        far, np.zeros(200, int), np.repeat(["a", "b"], 100), np.repeat(np.arange(20), 10), channels=[]
    ).activities["dws"]
    assert reference.mean == pytest.approx([5.0] * COUNT, abs=0.1)
    assert np.sqrt(reference.people) == pytest.approx(7.07, abs=0.2)
    assert max(np.sqrt(np.diagonal(reference.between))) < 0.3
