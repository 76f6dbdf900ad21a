"""Readings into windows: the same windows whatever the batches, and never one across a gap."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from schemas.activity import CHANNEL_NAMES, GRAVITY, ROTATION
from streams.gate import Rows
from streams.intake import Intake
from streams.records import Record, chunk_of
from streams.windows import (
    HOP,
    LABEL_CODES,
    NO_LABEL,
    WINDOW,
    Readings,
    complete_gravity,
    cut,
    empty_readings,
    expected_windows,
    gravity_of,
)

STEP = 0.02
WALK, SIT = LABEL_CODES["wlk"], LABEL_CODES["sit"]


def readings(count, gaps=(), labels=None):
    """count readings at 50 Hz; gaps: indices before which 5 s are missing. A value tells its row and column."""
    steps = np.full(count, STEP)
    steps[[at for at in gaps if at < count]] += 5.0
    values = np.arange(count)[:, None] + np.arange(len(CHANNEL_NAMES)) / 100
    labels = np.full(count, WALK) if labels is None else np.asarray(labels, np.int64)
    return Readings(1.7e9 + np.cumsum(steps), values, labels, 1000 + np.arange(count))


def measurable(whole):
    """The readings with values that pass the gate."""
    return replace(whole, values=whole.values / 1e4)


def fed(whole, bounds):
    """Windows, and readings that the next one still needs, after feeding in the chunks between the bounds."""
    intake, found = Intake(), []
    for start, end in pairwise([0, *sorted(bounds), len(whole)]):
        part = whole.part(start, end)
        rows = Rows(np.zeros(len(part), np.int64), np.arange(len(part)), part.ts, part.values, part.labels)
        chunk = chunk_of([Record(offset, None, None, None) for offset in part.offsets.tolist()])
        found.append(intake.take(rows, chunk).windows)
    return found, intake.buffered(0).readings


@given(
    count=st.integers(0, 420),
    gaps=st.sets(st.integers(1, 420), max_size=3),
    bounds=st.lists(st.integers(0, 420), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_any_chunking_gives_the_windows_of_all_at_once(count, gaps, bounds):
    """How Kafka happens to batch, and where a restart falls, must not change what is detected."""
    whole = measurable(readings(count, gaps))
    at_once, rest_at_once = cut(whole)
    in_chunks, rest = fed(whole, [min(bound, count) for bound in bounds])
    for name in ("values", "start", "end", "first_offset", "last_offset", "labels"):
        assert_array_equal(np.concatenate([getattr(part, name) for part in in_chunks]), getattr(at_once, name), name)
    for name in rest.__slots__:
        assert_array_equal(getattr(rest, name), getattr(rest_at_once, name), name)


def test_readings_one_by_one_give_the_windows_of_all_at_once():
    """The slowest producer sends single readings."""
    whole = measurable(readings(300, gaps=[150]))
    in_chunks, _ = fed(whole, range(300))
    assert_array_equal(np.concatenate([part.start for part in in_chunks]), cut(whole)[0].start)


@given(count=st.integers(0, 420), gaps=st.sets(st.integers(1, 419), max_size=3))
@settings(max_examples=60, deadline=None)
def test_windows_begin_every_64_readings_of_each_unbroken_run(count, gaps):
    """Spelt out naively, so that the quick version has something to be compared with."""
    expected = []
    for begin, end in pairwise([0, *sorted(gap for gap in gaps if gap < count), count]):
        expected += [at for at in range(begin, end, HOP) if at + WINDOW <= end]
    windows, _ = cut(readings(count, gaps))
    assert_array_equal(windows.first_offset, 1000 + np.asarray(expected, np.int64))
    assert_array_equal(windows.last_offset, windows.first_offset + WINDOW - 1)
    assert_array_equal(windows.values[:, :, 0], (windows.first_offset - 1000)[:, None] + np.arange(WINDOW))


def test_a_window_holds_128_readings_of_12_channels_with_the_times_of_its_ends():
    """The deployed model and the detector index into this shape."""
    whole = readings(WINDOW + HOP)
    windows, rest = cut(whole)
    assert windows.values.shape == (2, WINDOW, len(CHANNEL_NAMES))
    assert_array_equal(windows.values[1], whole.values[HOP:])
    assert_array_equal(windows.start, whole.ts[[0, HOP]])
    assert_array_equal(windows.end, whole.ts[[WINDOW - 1, WINDOW + HOP - 1]])
    assert len(rest) == HOP


def test_a_gap_starts_a_new_run():
    """Half a walk and half a lift ride are no movement that a model has ever seen."""
    windows, rest = cut(readings(400, gaps=[100]))
    assert windows.first_offset.tolist() == [1100, 1164, 1228]
    assert len(rest) == 400 - 100 - 3 * HOP


def test_a_lost_reading_is_no_gap():
    """Radios drop packets; a second of silence is bridged, more is not."""
    whole = readings(WINDOW)
    for silence, windows in ((0.9, 1), (1.1, 0)):
        ts = whole.ts.copy()
        ts[64:] += silence - STEP
        assert len(cut(Readings(ts, whole.values, whole.labels, whole.offsets))[0]) == windows


def test_a_run_too_short_for_a_window_waits_for_more():
    """Nothing may be lost between two messages."""
    windows, rest = cut(readings(WINDOW - 1))
    assert (len(windows), len(rest)) == (0, WINDOW - 1)


def test_no_readings_give_no_windows():
    """A poll may come back with nothing."""
    windows, rest = cut(empty_readings())
    assert (len(windows), len(rest)) == (0, 0)
    assert windows.values.shape == (0, WINDOW, len(CHANNEL_NAMES))


def test_a_window_has_a_label_only_if_all_its_readings_agree():
    """A model that learns half a transition as `sit` is wrong about sitting."""
    windows, _ = cut(readings(4 * HOP, labels=[WALK] * (WINDOW + 10) + [SIT] * (WINDOW - 10)))
    assert windows.labels.tolist() == [WALK, NO_LABEL, NO_LABEL]
    windows, _ = cut(readings(WINDOW, labels=[WALK] * (WINDOW - 1) + [NO_LABEL]))
    assert windows.labels.tolist() == [NO_LABEL]


def test_chosen_windows_keep_their_columns_together():
    """A label that slips by one row trains a model on another person's activity."""
    windows, _ = cut(readings(4 * HOP, labels=[WALK] * WINDOW + [SIT] * WINDOW))
    last = windows.chosen(windows.labels == SIT)
    assert last.first_offset.tolist() == [1000 + WINDOW]
    assert last.values[0, 0, 0] == WINDOW
    assert last.labels.tolist() == [SIT]
    assert len(windows.chosen(slice(0, 2))) == 2


@pytest.mark.parametrize(
    ("pose", "attitude", "gravity"),
    [
        ("flat on a table, display up", (0, 0, 0), (0, 0, -1)),
        ("flat, turned around", (0, 0, 2), (0, 0, -1)),
        ("display down", (np.pi, 0, 0), (0, 0, 1)),
        ("upright in the hand", (0, np.pi / 2, 0), (0, -1, 0)),
        ("upside down", (0, -np.pi / 2, 0), (0, 1, 0)),
        ("on its right side", (np.pi / 2, 0, 0), (1, 0, 0)),
        ("on its left side", (-np.pi / 2, 0, 0), (-1, 0, 0)),
        ("in a trouser pocket (contracts' reading)", (1.528, -0.733, 0.696), (0.741, 0.669, -0.031)),
    ],
)
def test_gravity_points_where_the_pose_says(pose, attitude, gravity):
    """A sign the wrong way round looks like a phone that was turned over, and that is a drift."""
    np.testing.assert_allclose(gravity_of(np.array([attitude], float)), [gravity], atol=0.0025)


def test_gravity_is_computed_only_where_a_reading_lacks_it():
    """What the sensor measured counts more than what we derive."""
    values = np.zeros((3, len(CHANNEL_NAMES)))
    values[:, GRAVITY] = (0.1, 0.2, 0.3)
    values[1, GRAVITY] = np.nan
    values[2, GRAVITY.start] = np.nan
    values[:, ROTATION] = np.nan
    complete = complete_gravity(values)
    assert_array_equal(complete[:, GRAVITY], [(0.1, 0.2, 0.3), (0, 0, -1), (0, 0, -1)])
    assert np.isnan(complete[:, ROTATION]).all()


@pytest.mark.parametrize("count", [0, WINDOW - 1, WINDOW, WINDOW + HOP - 1, WINDOW + HOP, WINDOW + 27 * HOP])
def test_as_many_windows_are_expected_as_there_are(count):
    """Waiting times are promised from this figure; 37.12 s times 50 Hz is 1,855.9999999999998."""
    assert expected_windows(count * STEP) == expected_windows(count / 50) == len(cut(readings(count))[0])
