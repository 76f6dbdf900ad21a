"""The ten numbers of a window: what each one means, and that none is ever not a number."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.activity import CHANNEL_NAMES, CHANNELS
from streams.simulator import simulate
from streams.statistics import STATISTICS, statistics, yaw_rate
from streams.windows import Readings, cut

NAMES = [(item.feature, item.kind) for item in STATISTICS]


def of(**channels):
    """Statistics by name of one window; a channel that is not given is 0 throughout."""
    values = np.zeros((1, 128, len(CHANNEL_NAMES)))
    for name, column in channels.items():
        values[0, :, CHANNEL_NAMES.index(name)] = column
    return dict(zip(NAMES, statistics(values)[0].tolist(), strict=True))


def test_each_statistic_is_traceable_to_a_channel():
    """A drift names the feature a person can look at."""
    assert len(set(NAMES)) == 10
    assert {feature for feature, _ in NAMES} < set(CHANNEL_NAMES)


@pytest.mark.parametrize("axis", "xyz")
def test_means_and_spreads_are_those_of_their_own_channel(axis):
    """A column that slips by one blames another sensor axis."""
    swing = np.tile([0.3, -0.1], 64)
    found = of(**{f"userAcceleration.{axis}": swing, f"gravity.{axis}": 0.7})
    expected = dict.fromkeys(NAMES, 0.0) | of()
    expected[f"gravity.{axis}", "mean"] = 0.7
    expected[f"userAcceleration.{axis}", "mean"] = 0.1
    expected[f"userAcceleration.{axis}", "log-sd"] = np.log(0.2 + 0.005)
    assert found == pytest.approx(expected)


def test_a_still_sensor_has_finite_statistics():
    """The logarithm of nothing is minus infinity, and one of those blinds ADWIN for good."""
    assert np.isfinite(list(of().values())).all()


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_most_extreme_readings_that_pass_the_gate_have_finite_statistics(end):
    """Whatever passes the gate is fed to a detector."""
    values = np.tile([getattr(channel, end) for channel in CHANNELS], (1, 128, 1))
    values[:, ::2] = [-getattr(channel, end) for channel in CHANNELS]
    assert np.isfinite(statistics(values)).all()


def test_yaw_may_run_around_the_circle():
    """From π to -π is a small step, not a spin."""
    turning = np.linspace(2.5, 4.0, 128)
    wrapped = (turning + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(np.diff(wrapped)).max() > 6
    np.testing.assert_allclose(yaw_rate(wrapped), yaw_rate(turning), atol=1e-9)
    np.testing.assert_allclose(yaw_rate(turning), 1.5 / 127 * 50)


def test_statistics_do_not_depend_on_which_windows_come_along():
    """A last bit that depends on the company would be a state that depends on how Kafka batches."""
    recording = simulate(1, 60, seed=1, start_ts=1.7e9)[0]
    windows, _ = cut(Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording))))
    together = statistics(windows.values)
    for row in range(len(windows)):
        assert (statistics(windows.values[row : row + 1])[0] == together[row]).all()
    assert statistics(windows.values[:0]).shape == (0, 10)
