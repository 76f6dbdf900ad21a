"""Injected drifts: exactly what their text says, from their moment on."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.activity import ACCELERATION, ATTITUDE, GRAVITY, ROTATION
from schemas.errors import UserError
from streams.inject import AXES, Drift, apply, parse_drift
from streams.simulator import simulate
from streams.windows import gravity_of

AT = 20.0
ROW = 1000


@pytest.fixture(scope="module")
def recording():
    return simulate(1, 40, seed=1, start_ts=1.7e9)[0]


@pytest.fixture(scope="module")
def other():
    return simulate(1, 40, seed=1, start_ts=0.0, first=2)[0]


def rng():
    return np.random.default_rng(5)


EVERY_KIND = ["rotate:90", "bias:0.3", "gain:1.5", "noise:0.1", "stuck:y", "ramp:0.3", "subject:sim-02"]


@pytest.mark.parametrize("text", EVERY_KIND)
def test_nothing_changes_before_the_moment_and_something_after(recording, other, text):
    """A detection delay is measured from the moment; a drift that leaks backwards would flatter it."""
    before = recording.values.copy()
    drifted = apply(recording, parse_drift(f"{text}@{AT}"), rng(), other)
    assert drifted.values[:ROW].tobytes() == recording.values[:ROW].tobytes()
    assert drifted.ts[:ROW].tobytes() == recording.ts[:ROW].tobytes()
    assert not np.array_equal(drifted.values[ROW:], recording.values[ROW:])
    np.testing.assert_array_equal(recording.values, before)


@pytest.mark.parametrize("text", EVERY_KIND)
def test_the_same_generator_state_gives_the_same_drift(recording, other, text):
    """Benchmarks are repeated with a seed."""
    once, again = (apply(recording, parse_drift(f"{text}@{AT}"), rng(), other) for _ in range(2))
    np.testing.assert_array_equal(once.values, again.values)


@pytest.mark.parametrize("text", EVERY_KIND)
def test_a_drift_is_of_its_device_alone(recording, other, text):
    """One phone in a fleet slips; the others are what shows that it was this one."""
    drift = parse_drift(f"{text}@{AT}:phone-09")
    assert apply(recording, drift, rng(), other) is recording


def test_a_rotation_keeps_every_length_and_every_angle_between_vectors(recording):
    """The phone sits differently, the person moves the same: nothing that is independent of the frame may change."""
    drifted = apply(recording, parse_drift(f"rotate:70@{AT}"), rng())
    for columns in (ACCELERATION, ROTATION, GRAVITY):
        old, new = recording.values[ROW:, columns], drifted.values[ROW:, columns]
        np.testing.assert_allclose(np.linalg.norm(new, axis=1), np.linalg.norm(old, axis=1))
    for columns in (ACCELERATION, ROTATION):
        old, new = ((one.values[ROW:, columns] * one.values[ROW:, GRAVITY]).sum(1) for one in (recording, drifted))
        np.testing.assert_allclose(new, old, atol=1e-12)


def test_a_rotation_turns_by_as_many_degrees_as_it_says(recording):
    """The angle is the drift's size in every figure that we publish; tr R = 1 + 2 cos angle."""
    drifted = apply(recording, parse_drift(f"rotate:70@{AT}"), rng())
    turn, *_ = np.linalg.lstsq(recording.values[ROW:, ACCELERATION], drifted.values[ROW:, ACCELERATION])
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(70)


def test_roll_and_pitch_follow_the_turned_gravity_and_yaw_is_left(recording):
    """Devices that send no gravity are completed from attitude; it has to tell of the same rotation."""
    drifted = apply(recording, parse_drift(f"rotate:120@{AT}"), rng())
    attitude = drifted.values[ROW:, ATTITUDE]
    np.testing.assert_allclose(gravity_of(attitude), drifted.values[ROW:, GRAVITY], atol=1e-9)
    np.testing.assert_array_equal(attitude[:, 2], recording.values[ROW:, ATTITUDE.stop - 1])


def test_a_bias_moves_one_axis_by_so_many_g(recording):
    """More than one axis would be another drift."""
    change = apply(recording, parse_drift(f"bias:-0.3@{AT}"), rng()).values - recording.values
    moved = np.flatnonzero(np.abs(change[ROW:]).max(0))
    assert len(moved) == 1
    assert moved[0] in range(9, 12)
    np.testing.assert_allclose(change[ROW:, moved[0]], -0.3)


def test_a_gain_scales_acceleration_only(recording):
    """Gravity and gyroscope unscaled is what makes a gain identifiable."""
    drifted = apply(recording, parse_drift(f"gain:1.5@{AT}"), rng())
    np.testing.assert_allclose(drifted.values[ROW:, ACCELERATION], 1.5 * recording.values[ROW:, ACCELERATION])
    np.testing.assert_array_equal(drifted.values[ROW:, :9], recording.values[ROW:, :9])


def test_noise_has_the_size_it_says_on_all_axes(recording):
    """0.1 g means a standard deviation of 0.1 g."""
    change = (apply(recording, parse_drift(f"noise:0.1@{AT}"), rng()).values - recording.values)[ROW:, ACCELERATION]
    np.testing.assert_allclose(change.std(0), 0.1, rtol=0.15)


@pytest.mark.parametrize("axis", AXES)
def test_a_stuck_axis_holds_its_last_value(recording, axis):
    """A dead sensor repeats what it saw last; zero would be another fault."""
    column = 9 + AXES.index(axis)
    drifted = apply(recording, parse_drift(f"stuck:{axis}@{AT}"), rng())
    assert set(drifted.values[ROW:, column]) == {recording.values[ROW - 1, column]}


def test_a_ramp_grows_by_its_amount_in_300_seconds(recording):
    """Slow drifts are named by their slope, so that they are comparable."""
    change = apply(recording, Drift("ramp", 0.3, AT, axis="z"), rng()).values - recording.values
    assert change[ROW, 11] == pytest.approx(0, abs=1e-9)
    assert change[-1, 11] == pytest.approx(0.3 * 19.98 / 300)


def test_another_person_takes_the_device_over_without_a_gap(recording, other):
    """Kafka sees the same device go on; only the body is another."""
    drifted = apply(recording, parse_drift(f"subject@{AT}"), rng(), other)
    assert drifted.device == recording.device
    np.testing.assert_allclose(np.diff(drifted.ts), 0.02, atol=1e-5)
    np.testing.assert_array_equal(drifted.values[ROW:], other.values[: len(recording) - ROW])
    np.testing.assert_array_equal(drifted.labels[ROW:], other.labels[: len(recording) - ROW])


def test_nobody_to_take_over_is_told():
    """A run with one person cannot show it."""
    with pytest.raises(UserError, match="no other person"):
        apply(simulate(1, 5, seed=1, start_ts=0.0)[0], parse_drift("subject@2"), rng())


def test_a_moment_after_the_end_changes_nothing(recording):
    """`--drift …@9999` on a short recording is a run without a drift."""
    np.testing.assert_array_equal(apply(recording, parse_drift("stuck:x@9999"), rng()).values, recording.values)


@pytest.mark.parametrize(
    ("text", "drift"),
    [
        ("rotate:90@300:phone-07", Drift("rotate", 90.0, 300.0, "phone-07")),
        ("bias:-.3@0", Drift("bias", -0.3, 0.0)),
        ("stuck:x@12.5", Drift("stuck", 0.0, 12.5, axis="x")),
        ("subject:8@60:a.b_c-1", Drift("subject", 0.0, 60.0, "a.b_c-1", person="8")),
        ("subject@60", Drift("subject", 0.0, 60.0)),
    ],
)
def test_what_a_person_writes_is_what_is_done(text, drift):
    """`--drift KIND:AMOUNT@SECONDS[:DEVICE]` is public; a drift prints itself so that it can be pasted back."""
    assert parse_drift(text) == drift
    assert parse_drift(str(drift)) == drift


@pytest.mark.parametrize(
    "text",
    [
        *["", "rotate", "rotate:90", "rotate@300", "twist:9@3", "rotate:x@300", "rotate:200@300", "rotate:-5@3"],
        *["rotate:0@3", "rotate:nan@3", "gain:0@3", "gain:-1@3", "noise:-.1@3", "stuck:w@3", "stuck:1@3", "bias:0@3"],
        *["bias:.3@-1", "bias:.3@inf", "bias:.3@soon", "bias:.3@3:", "bias:.3@3:a b"],
    ],
)
def test_what_cannot_be_meant_is_answered_with_an_example(text):
    """A drift that silently does nothing would look like a detector that misses it."""
    with pytest.raises(UserError, match="@300") as told:
        parse_drift(text)
    assert "\n" not in str(told.value)
