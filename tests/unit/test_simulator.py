"""SYNTHETIC people: one motion in twelve channels, repeatable; and a day cut out of a protocol."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from schemas.activity import ACCELERATION, ACTIVITIES, ATTITUDE, CHANNELS, GRAVITY, ROTATION
from schemas.errors import UserError
from streams.recording import shuffled_apart, shuffled_bouts, spans
from streams.simulator import simulate, walker
from streams.windows import gravity_of


@pytest.fixture(scope="module")
def recording():
    return simulate(1, 600, seed=4, start_ts=1.7e9)[0]


def test_the_same_seed_and_person_are_always_the_same_readings():
    """Tests, benchmarks and a bug report have to be repeatable, however many devices are simulated beside it."""
    alone = simulate(1, 20, seed=1, start_ts=0.0, first=3)[0]
    among = simulate(3, 20, seed=1, start_ts=0.0)[2]
    assert alone.device == among.device == "phone-03"
    assert alone.person == among.person
    np.testing.assert_array_equal(alone.values, among.values)
    assert not np.array_equal(alone.values, simulate(1, 20, seed=2, start_ts=0.0, first=3)[0].values)


def test_a_longer_recording_begins_with_the_shorter_one():
    """A demo that plays on must continue what it has played, at the end of a bout as in its middle."""
    long = simulate(1, 240, seed=3, start_ts=5.0)[0]
    (_, first_bout), *_ = spans(long.trials, long.labels)
    for rows in (450, first_bout - 10, first_bout, first_bout + 10):
        short = simulate(1, rows / 50, seed=3, start_ts=5.0)[0]
        assert len(short) == rows
        np.testing.assert_array_equal(short.values, long.values[:rows])
        np.testing.assert_array_equal(short.labels, long.labels[:rows])


def test_another_session_is_the_same_person_on_another_day():
    """What was learned of a person has to hold later; only the day is another one."""
    today, later = (simulate(1, 120, seed=1, start_ts=0.0, session=number)[0] for number in (0, 1))
    assert today.person == later.person
    assert not np.array_equal(today.values, later.values)
    assert not np.array_equal(today.labels, later.labels)
    first, again = walker(1, 1), walker(1, 1)
    np.testing.assert_array_equal(first.habits["wlk"].shake, again.habits["wlk"].shake)


def test_gravity_is_where_the_attitude_says(recording):
    """The agent computes gravity from attitude where a device sends none, so both have to agree."""
    attitude, gravity = recording.values[:, ATTITUDE], recording.values[:, GRAVITY]
    np.testing.assert_allclose(gravity_of(attitude), gravity, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(gravity, axis=1), 1.0)


def test_the_rotation_rate_is_how_the_attitude_turns(recording):
    """Gravity stands still, so a phone turning at w sees it move by -w × g; a made-up gyroscope does not show that."""
    gravity, rate = recording.values[:, GRAVITY], recording.values[:, ROTATION]
    turning = np.gradient(gravity, 0.02, axis=0)
    for activity in ("wlk", "jog", "ups", "dws"):
        rows = recording.labels == ACTIVITIES.index(activity)
        if rows.any():
            expected = -np.cross(rate[rows], gravity[rows])
            assert np.corrcoef(turning[rows].ravel(), expected.ravel())[0, 1] > 0.9, activity


def test_steps_shake_a_phone_along_gravity_as_well_as_across(recording):
    """Acceleration is in the phone's frame: what goes up and down lies along gravity, however the phone sits."""
    rows = recording.labels == ACTIVITIES.index("wlk")
    acceleration, gravity = recording.values[rows, ACCELERATION], recording.values[rows, GRAVITY]
    up = -(acceleration * gravity).sum(1)
    level = acceleration + up[:, None] * gravity
    assert 0.25 < up.std() < 1.2
    assert 0.25 < np.sqrt((level**2).sum(1).mean()) < 1.2


def test_every_simulated_reading_passes_the_quality_gate():
    """A simulator that makes dead letters would be tested instead of the loop."""
    values = np.concatenate([recording.values for recording in simulate(4, 300, seed=9, start_ts=0.0)])
    assert np.isfinite(values).all()
    assert (values >= [channel.low for channel in CHANNELS]).all()
    assert (values <= [channel.high for channel in CHANNELS]).all()
    assert np.abs(values[:, 1]).max() <= np.pi / 2
    assert np.abs(values[:, [0, 2]]).max() <= np.pi


def test_no_activity_follows_itself_and_each_bout_has_its_own_number(recording):
    """A bout is the unit that detector and splits count in; two of one activity side by side would be one."""
    bouts = spans(recording.trials, recording.labels)
    assert len(bouts) == len(np.unique(recording.trials))
    assert all(recording.labels[a] != recording.labels[b] for (a, _), (b, _) in pairwise(bouts))


def test_the_mix_of_activities_is_a_choice():
    """More sitting than usual is no drift; showing that takes a day of more sitting."""
    lazy = simulate(1, 600, seed=1, start_ts=0.0, mix={"sit": 0.5, "std": 0.5})[0]
    assert {ACTIVITIES[label] for label in lazy.labels} == {"sit", "std"}


def test_arguments_that_cannot_work_are_told_to_the_user():
    """The numbers come from the command line."""
    for wrong in ({"devices": 0}, {"seconds": 0.0}, {"seed": -1}, {"mix": {}}, {"bout_seconds": (9.0, 3.0)}):
        with pytest.raises(UserError, match="simulate"):
            simulate(**({"devices": 1, "seconds": 5.0, "seed": 1, "start_ts": 0.0} | wrong))


def test_shuffled_bouts_are_a_day_and_not_a_protocol(recording):
    """In a protocol each activity comes in one block; a drift would be confused with the next block."""
    day = shuffled_bouts(recording, np.random.default_rng(0))
    bouts = [end - start for start, end in spans(day.trials, day.labels)]
    np.testing.assert_allclose(np.diff(day.ts), 0.02, atol=1e-5)
    assert day.ts[0] == recording.ts[0]
    assert min(bouts) >= 8 * 50
    assert max(bouts) <= 45 * 50
    short = shuffled_bouts(recording, np.random.default_rng(0), seconds=(1.0, 9.0))
    assert min(end - start for start, end in spans(short.trials, short.labels)) >= 8 * 50
    rows = {row.tobytes() for row in recording.values}
    assert all(row.tobytes() in rows for row in day.values)
    assert not np.array_equal(day.values, recording.values[: len(day)])


def test_the_hand_at_the_phone_is_cut_off(recording):
    """The first and last 1.5 s of a trial are the phone going into the pocket and out of it."""
    first, last = spans(recording.trials, recording.labels)[1]
    day = shuffled_bouts(recording.chosen(slice(first, last)), np.random.default_rng(0))
    kept = {row.tobytes() for row in day.values}
    edges = [*recording.values[first : first + 75], *recording.values[last - 75 : last]]
    assert not any(row.tobytes() in kept for row in edges)


@pytest.mark.parametrize("seed", range(20))
def test_equal_labels_are_neighbours_only_where_nothing_else_is_left(seed):
    """Five of nine just fit; six of nine cannot."""
    order = shuffled_apart([0] * 5 + [1, 1, 2, 3], np.random.default_rng(seed))
    assert sorted(order) == list(range(9))
    labels = [([0] * 5 + [1, 1, 2, 3])[index] for index in order]
    assert all(a != b for a, b in pairwise(labels))
    assert sorted(shuffled_apart([0] * 6 + [1, 1, 2], np.random.default_rng(seed))) == list(range(9))


def test_a_recording_is_cut_by_time(recording):
    """Protocols speak of seconds since the beginning; event times near 1.7e9 must not lose a reading to rounding."""
    part = recording.between(10.0, 20.0)
    assert len(part) == 500
    np.testing.assert_array_equal(part.values, recording.values[500:1000])
    assert part.starting_at(3.0).ts[0] == 3.0
    moved = recording.starting_at(0.0)  # keeps the rounding of 1.7e9
    assert [moved.row_at(row / 50) for row in range(3000)] == list(range(3000))
