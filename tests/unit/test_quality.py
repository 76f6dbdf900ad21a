"""When a channel is told to be broken, once, and when to be well again."""

from __future__ import annotations

import numpy as np
import pytest

from streams.measures import measure
from streams.quality import Degraded, Quality, refused_of
from streams.windows import Windows


def windows(count, change=lambda values: None, first=0, hop_s=1.28, length_s=2.54):
    values = np.random.default_rng(first).normal(0, 0.1, (count, 128, 12))
    change(values)
    start = 1.7e9 + hop_s * (first + np.arange(count))
    offsets = 64 * (first + np.arange(count))
    return Windows(values, start, start + length_s, offsets, offsets + 127, np.zeros(count, np.int64), measure(values))


def told(quality, *parts, refused=()):
    return [item for part in parts for item in quality.observe(part, refused)[0]]


def hold(values):
    values[:, :, 4] = 0.3


def clip(values):
    values[:, :, 9] = np.clip(values[:, :, 9] * 100, -8, 8)


@pytest.mark.parametrize(
    ("change", "channel", "fault"), [(hold, "gravity.y", "stuck"), (clip, "userAcceleration.x", "out-of-range")]
)
def test_a_fault_is_told_once_and_once_when_it_ends(change, channel, fault):
    """Subscribers get two events, not one a window."""
    said = told(Quality(), windows(5), windows(20, change, 5), windows(20, first=25))
    assert [(item.channel, item.fault, item.ended) for item in said] == [
        (channel, fault, False),
        (channel, fault, True),
    ]


def test_two_bad_windows_are_no_fault_but_are_not_judged_either():
    """A glitch needs no event; an ADWIN must not see it all the same."""
    quality = Quality()
    said, broken = quality.observe(windows(2, hold))
    assert broken is not None
    assert said == []
    assert broken[:, 4].all()
    assert told(quality, windows(10, first=2)) == []
    assert quality.episodes == {}


def test_another_sampling_rate_is_the_whole_device_s_fault():
    """Two phones of one name give 100 Hz: every spectrum is wrong."""
    quality = Quality()
    said, broken = quality.observe(windows(5, hop_s=0.64, length_s=1.27))
    assert broken is not None
    assert [(item.channel, item.fault) for item in said] == [("*", "rate")]
    assert broken.all()


def test_readings_that_go_missing_again_and_again_are_a_gap_and_a_device_that_was_off_is_not():
    """Only the first is a fault of the sensor or its network."""
    assert told(Quality(), windows(10), windows(10, first=500)) == []
    said = told(Quality(), windows(30, hop_s=3.0))
    assert [(item.channel, item.fault) for item in said] == [("*", "gap")]


def test_refused_readings_are_a_fault_of_their_channel():
    """A sensor that sends NaN half of the time is broken, whatever the other half looks like."""
    quality = Quality()
    said = []
    for number in range(10):
        part = windows(1, first=number)
        reason = "userAcceleration.z (and 19 more readings of this batch)"
        refused = [refused_of(int(part.last_offset[0]), "not-finite", reason)]
        said += quality.observe(part, refused)[0]
    assert [(item.channel, item.fault) for item in said] == [("userAcceleration.z", "not-finite")]
    assert [(item.fault, item.ended) for item in told(quality, windows(10, first=10))] == [("not-finite", True)]


def test_a_sensor_that_sends_nothing_that_can_be_read_is_told_without_a_window():
    """None ever completes."""
    quality = Quality()
    quality.observe(windows(3))
    refused = [refused_of(1000 + number, "not-finite", "rotationRate.x") for number in range(400)]
    assert told(quality, windows(0), refused=refused) == [Degraded("rotationRate.x", "not-finite", 1.7e9 + 5.1, 1191)]


def test_readings_that_keep_coming_out_of_order_are_a_second_device_of_the_same_name():
    """Which of both is read is chance: nothing is judged, nothing is alarmed."""
    quality = Quality()
    said, broken = [], []
    for number in range(5):
        part = windows(1, first=number)
        late = [refused_of(int(part.last_offset[0]), "out-of-order", f"ts {number} is not after {number}")] * 64
        faults, mask = quality.observe(part, late)
        said += faults
        broken.append(mask.all())
    assert [(item.channel, item.fault) for item in said] == [("*", "rate")]
    assert all(broken)
    assert refused_of(1, "schema", "act: 'walking' is none of them") is None


def test_state_goes_on_where_it_was():
    """An episode that a restart forgets is told twice."""
    quality, again = Quality(), Quality()
    assert len(told(quality, windows(5, hold))) == 1
    again.load(quality.dump())
    assert told(again, windows(5, hold, first=5)) == []
