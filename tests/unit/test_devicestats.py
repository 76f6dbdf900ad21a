"""What the agent shows of devices: bounded, and the ones that matter."""

from dataclasses import replace

import numpy as np

from streams.devicestats import MOST_AT_ONCE, STEP_S, DeviceStatistics
from streams.statistics import STATISTICS
from streams.windows import Windows


def windows(count, start=0.0, step=1.28):
    end = start + step * np.arange(count)
    none = np.zeros(count, np.int64)
    return Windows(np.zeros((count, 128, 12)), end - 2.54, end, none, none, none - 1)


def test_windows_are_thinned_alike_however_they_come():
    """A point every five seconds is enough to look at, whether readings come one by one or in a backlog."""
    at_once = DeviceStatistics(1).of("a", windows(40))
    one_by_one, shown = DeviceStatistics(1), []
    for row in range(40):
        told = one_by_one.of("a", windows(40).chosen(slice(row, row + 1)))
        shown += told.ends if told else []
    assert at_once.ends == shown
    assert np.diff(shown).min() >= STEP_S - 0.1


def test_of_a_backlog_no_more_is_shown_than_can_be_looked_at():
    """An agent that catches up with a day of readings must not write the day once more."""
    told = DeviceStatistics(1).of("a", windows(2000))
    assert len(told.ends) == len(told.values) == MOST_AT_ONCE
    assert told.ends[-1] > windows(2000).end[-5]


def test_what_was_measured_for_the_detector_is_not_measured_again():
    """Looking must not cost the hot path: what is shown is what the detector saw."""
    measured = replace(windows(1), measures=np.arange(44.0)[None])
    told = DeviceStatistics(1).of("a", measured)
    assert told.values == [list(range(11))]
    assert told.statistics[-1] == "userAcceleration log-ratio"
    assert len(DeviceStatistics(1).of("a", windows(1)).statistics) == len(STATISTICS)


def test_no_more_devices_are_shown_than_asked_for():
    """Ten thousand phones must not double what is written."""
    shown = DeviceStatistics(2)
    assert [shown.of(name, windows(1)) is not None for name in "abc"] == [True, True, False]


def test_a_device_that_drifts_takes_the_place_of_a_calm_one():
    """It is the one that people will want to see."""
    shown = DeviceStatistics(1)
    shown.of("calm", windows(1))
    shown.drifted("drifted")
    assert shown.of("drifted", windows(1)) is not None
    assert shown.of("calm", windows(1, start=100)) is None


def test_a_device_that_fell_silent_gives_its_place_away():
    """Phones come and go."""
    shown = DeviceStatistics(1)
    shown.of("gone", windows(1))
    assert shown.of("new", windows(1, start=2000)) is not None


def test_none_are_shown_where_none_are_wanted():
    """The setting's zero."""
    shown = DeviceStatistics(0)
    shown.drifted("a")
    assert shown.of("a", windows(1)) is None
