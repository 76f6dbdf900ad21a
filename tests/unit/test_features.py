"""Windows become the same finite, named numbers everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.activity import ACCELERATION, CHANNELS, GRAVITY, ROTATION
from streams.features import FEATURES, FEATURES_WITHOUT_AXES, FEATURES_WITHOUT_ROTATION, features
from streams.inject import rotation
from streams.windows import WINDOW

SECONDS = np.arange(WINDOW) / 50


def walking(windows=1, step_hz=2.0, seed=0):
    """Windows of a vertical bounce at step_hz, a phone upright in the pocket, a little noise on every channel."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.05, (windows, WINDOW, 12))
    values[:, :, GRAVITY] = (0.0, -1.0, 0.0)
    values[:, :, ACCELERATION.start + 1] += 0.4 * np.sin(2 * np.pi * step_hz * SECONDS)
    return values


def one(values, name):
    return features(values, [name])[0, 0]


def test_there_are_107_features_and_70_of_them_need_no_gyroscope():
    assert len(set(FEATURES)) == len(FEATURES) == 107
    assert len(FEATURES_WITHOUT_ROTATION) == 70
    assert not [name for name in FEATURES_WITHOUT_ROTATION if "rotationRate" in name]


def test_each_name_begins_with_the_sensor_that_it_comes_from():
    """Who reads a model's coefficients or a drift figure wants to know which sensor to look at."""
    assert {name.strip("|").split(".")[0].strip("|") for name in FEATURES} == {
        "attitude",
        "gravity",
        "rotationRate",
        "userAcceleration",
    }


def test_names_stay_what_registered_models_were_trained_on():
    """A model in the registry names its columns: a renamed feature would leave it unusable."""
    assert {
        "gravity.x.mean",
        "userAcceleration.y.log_sd",
        "attitude.yaw_rate.log_sd",
        "|userAcceleration|.band_1.0_1.7",
        "|rotationRate|.stride_s",
        "userAcceleration.vertical.kurtosis",
        "rotationRate.x.correlation.y",
    } <= set(FEATURES)


@pytest.mark.parametrize("channel", range(12))
@pytest.mark.parametrize("where", ["low", "high"])
def test_a_stuck_channel_gives_finite_features(channel, where):
    values = walking()
    values[:, :, channel] = getattr(CHANNELS[channel], where)
    assert np.isfinite(features(values)).all()


def test_a_sensor_that_reports_nothing_but_zeros_gives_finite_features():
    assert np.isfinite(features(np.zeros((2, WINDOW, 12)))).all()


def test_a_constant_signal_has_no_rhythm():
    """Rounding left over from the mean must not decide which frequency is the strongest."""
    values = np.zeros((1, WINDOW, 12))
    values[:, :, GRAVITY] = (0.0, -1.0, 0.0)
    values[:, :, ACCELERATION] = 0.1
    assert one(values, "|userAcceleration|.peak_share") == 0
    assert one(values, "|userAcceleration|.stride_autocorrelation") == 0


def test_a_window_has_the_same_features_alone_and_among_others():
    """The agent computes whatever has arrived, the training thousands at once; a model must not see a difference."""
    values = walking(300)
    together = features(values)
    alone = np.concatenate([features(values[index : index + 1]) for index in (0, 7, 255, 256, 299)])
    np.testing.assert_allclose(alone, together[[0, 7, 255, 256, 299]], rtol=0, atol=1e-9)


def test_a_device_without_a_gyroscope_gets_the_features_that_need_none():
    values = walking(3)
    expected = features(values, FEATURES_WITHOUT_ROTATION)
    values[:, :, ROTATION] = np.nan
    np.testing.assert_array_equal(features(values, FEATURES_WITHOUT_ROTATION), expected)


def test_columns_come_in_the_order_asked_for():
    values = walking(2)
    names = ("gravity.y.mean", "|rotationRate|.log_sd", "gravity.x.mean")
    np.testing.assert_array_equal(
        features(values, names), features(values)[:, [FEATURES.index(name) for name in names]]
    )


def test_an_unknown_feature_is_named_in_the_error():
    with pytest.raises(KeyError, match=r"gravity\.w\.mean"):
        features(walking(), ["gravity.w.mean"])


def test_no_windows_give_no_rows():
    assert features(np.empty((0, WINDOW, 12))).shape == (0, 107)


def test_the_step_frequency_is_found_in_the_vertical_acceleration():
    values = walking(step_hz=1.95)
    assert one(values, "userAcceleration.vertical.dominant_hz") == pytest.approx(1.95, abs=0.2)
    steps = one(values, "userAcceleration.vertical.stride_s") * 1.95
    assert steps == pytest.approx(round(steps), abs=0.1), "a stride is a whole number of steps"
    bands = {name: one(values, f"userAcceleration.vertical.{name}") for name in ("band_1.7_2.4", "band_3.2_4.8")}
    assert bands["band_1.7_2.4"] > bands["band_3.2_4.8"] + 1


def test_vertical_is_the_part_along_gravity():
    """Gravity points down the phone's y axis here, so y is all of the vertical movement, with the sign turned."""
    values = walking()
    values[:, :, ACCELERATION.start + 1] += 0.2
    assert one(values, "userAcceleration.vertical.mean") == pytest.approx(-0.2, abs=0.03)
    assert one(values, "userAcceleration.vertical.log_sd") == pytest.approx(np.log(0.4 / np.sqrt(2)), abs=0.05)


def test_a_heading_that_passes_south_is_no_turn():
    """Yaw jumps from π to -π there: 314 rad/s, if the difference were not wrapped."""
    values = walking()
    values[0, :, 2] = np.mod(np.linspace(3.0, 3.3, WINDOW) + np.pi, 2 * np.pi) - np.pi
    assert one(values, "attitude.yaw_rate.log_sd") == pytest.approx(np.log(0.02), abs=0.01)


def test_turning_the_phone_leaves_the_features_of_magnitude_and_vertical_alone():
    """These are what makes a model bear a phone that sits differently in the pocket."""
    values = walking()
    turn = rotation(np.array([1.0, 2.0, 3.0]), 1.0)
    turned = values.copy()
    for vector in (GRAVITY, ROTATION, ACCELERATION):
        turned[..., vector] = values[..., vector] @ turn.T
    assert len(FEATURES_WITHOUT_AXES) == 80
    np.testing.assert_allclose(
        features(turned, FEATURES_WITHOUT_AXES), features(values, FEATURES_WITHOUT_AXES), atol=1e-6
    )
