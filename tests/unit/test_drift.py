"""What the detectors find on simulated people, and what they leave alone. Figures on real ones: tests/bench."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from schemas.activity import ACTIVITIES, CHANNELS
from streams.adwin import AdaptiveWindow
from streams.confirmed import COOLDOWN_S, STRETCH_WINDOWS, ConfirmedDetector
from streams.detectors import DETECTORS
from streams.drift import Change
from streams.inject import apply, parse_drift
from streams.simulator import simulate
from streams.statistics import STATISTICS
from streams.windows import NO_LABEL, Readings, Windows, cut, empty_readings

PEOPLE = 4
SECONDS = 1500
DRIFT_AT = 800


@cache
def people():
    return simulate(PEOPLE, SECONDS, seed=3, start_ts=1.7e9)


def readings(recording):
    return Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording)))


def changes(detector, recording):
    whole = readings(recording)
    return DETECTORS[detector]().observe(whole, measured(cut(whole)[0], DETECTORS[detector]))


def measured(windows, detector):
    """Windows with what the detector looks at, as the processor gives them."""
    return replace(windows, measures=None if detector.measure is None else detector.measure(windows.values))


def change(**more):
    fields = {"feature": "gravity.x", "statistic": "mean", "test": "adwin", "before": 0.0, "after": 1.0, "effect": 1.0}
    return Change(**fields | {"ts": 2.0, "change_ts": 1.0, "offset": 2, "change_offset": 1} | more)


def test_raw_alarms_without_end_on_people_who_only_change_what_they_do():
    """Why `raw` is not the default: walking and then sitting is a change of the mean."""
    recording = people()[0].between(0, 300)
    assert len(changes("raw", recording)) > 20


def test_confirmed_leaves_undrifted_people_alone():
    """A false alarm costs a training and, worse, trust. At most one in all this time, to be generous."""
    alarms = {(number, item.ts) for number, person in enumerate(people()) for item in changes("confirmed", person)}
    assert len(alarms) <= 1


@pytest.mark.parametrize("kind", ["noise:0.3", "rotate:90", "bias:0.3", "gain:2.5", "stuck:x"])
def test_confirmed_finds_most_drifts_and_names_when_they_began(kind):
    """What it is for. The change point is where the retraining's window begins."""
    found = []
    for number, person in enumerate(people()):
        drifted = apply(person, parse_drift(f"{kind}@{DRIFT_AT}"), np.random.default_rng(number))
        began = person.ts[0] + DRIFT_AT
        found += [item for item in changes("confirmed", drifted) if item.ts > began][:1]
    assert len(found) >= PEOPLE - 1
    for item in found:
        assert item.ts - began < 400
        assert abs(item.change_ts - began) < 300
        assert item.change_ts < item.ts
        assert item.change_offset < item.offset
        assert item.activity in ACTIVITIES
        assert item.effect > 1
        assert item.test == "statistic"
    assert {(item.feature, item.statistic) for item in found} <= {(each.feature, each.kind) for each in STATISTICS}


def test_a_drift_that_goes_on_is_one_alarm_not_one_a_window():
    """After an alarm the device is calibrated anew: what it shows now is normal until it changes again."""
    drifted = apply(people()[1], parse_drift(f"noise:0.3@{DRIFT_AT}"), np.random.default_rng(1))
    assert 1 <= len({item.ts for item in changes("confirmed", drifted)}) <= 2


def test_an_adwin_alone_names_the_reading_where_the_mean_moved():
    """`raw` and `per-feature` report ADWIN's own change point."""
    rng = np.random.default_rng(2)
    values = np.zeros((3000, len(CHANNELS)))
    values[:, 9] = rng.normal(0, 0.1, 3000) + np.where(np.arange(3000) < 2000, 0.0, 1.0)
    whole = Readings(1.7e9 + np.arange(3000) / 50, values, np.full(3000, NO_LABEL), 500 + np.arange(3000))
    found = DETECTORS["raw"]().observe(whole, cut(whole)[0])
    assert [(item.feature, item.statistic, item.direction) for item in found] == [("userAcceleration.x", "value", "up")]
    assert 2500 <= found[0].offset <= 2532  # ADWIN looks every 32 values
    # It cuts between its buckets, so up to some way before.
    assert 2380 <= found[0].change_offset <= 2532
    assert found[0].change_ts == whole.ts[found[0].change_offset - 500]
    since = slice(found[0].change_offset - 500, found[0].offset - 499)
    assert found[0].after == pytest.approx(values[since, 9].mean())
    assert found[0].before == pytest.approx(values[: since.start, 9].mean())


def windows(labels, shift=0.0, first=0):
    """One window for each label, 1.28 s apart, the activity's mean in gravity.x; shift: a drift on top."""
    count = len(labels)
    rng = np.random.default_rng(first)
    values = rng.normal(0, 0.02, (count, 128, 12))
    labels = np.asarray(labels, np.int64)
    values[:, :, 3] += 0.2 * np.maximum(labels, 0)[:, None] + shift
    start = 1.7e9 + 1.28 * (first + np.arange(count))
    offsets = 64 * (first + np.arange(count))
    return measured(Windows(values, start, start + 2.54, offsets, offsets + 127, labels), ConfirmedDetector)


def alternating(stretches, labels=(0, 1, 2), length=12):
    """Labels of so many stretches of activity in turn."""
    return [labels[number % len(labels)] for number in range(stretches) for _ in range(length)]


def test_a_window_of_two_activities_is_not_judged():
    """It looks like neither, and every change of activity has one."""
    detector = ConfirmedDetector()
    detector.observe(empty_readings(), windows([0, 0, NO_LABEL, 1, 1]))
    assert detector.state.index == 4


def test_windows_without_labels_count_until_the_first_label_whatever_the_runs():
    """Which windows one call brings is chance."""
    labels = [NO_LABEL] * 6 + [0] * 6
    at_once, one_by_one = ConfirmedDetector(), ConfirmedDetector()
    at_once.observe(empty_readings(), windows(labels))
    whole = windows(labels)
    for row in range(len(labels)):
        one_by_one.observe(empty_readings(), whole.chosen(slice(row, row + 1)))
    assert at_once.dump() == one_by_one.dump()
    assert at_once.state.index == 12


def test_a_device_that_stops_sending_labels_is_still_watched():
    """`act` is optional; a detector that waits for it for ever is blind, and nobody is told."""
    detector = ConfirmedDetector()
    labelled = alternating(9)
    assert detector.observe(empty_readings(), windows(labelled)) == []
    silent = [NO_LABEL] * (STRETCH_WINDOWS + 200)
    assert detector.observe(empty_readings(), windows(silent, first=200)) == []
    drifted = windows([NO_LABEL] * 200, shift=0.9, first=200 + len(silent))
    found = detector.observe(empty_readings(), drifted)
    assert {(item.feature, item.activity) for item in found} >= {("gravity.x", None)}


def test_changing_the_activity_alone_is_no_drift():
    """That is the whole point of conditioning on it: a month of sitting, then of walking."""
    detector = ConfirmedDetector()
    assert detector.observe(empty_readings(), windows(alternating(12))) == []
    assert detector.observe(empty_readings(), windows([0] * 300, first=144)) == []
    assert detector.observe(empty_readings(), windows([2] * 300, first=444)) == []


def test_two_alarms_of_a_device_are_five_minutes_apart():
    """A sensor that comes loose drifts again and again; it is one thing to look at."""
    detector = ConfirmedDetector()
    detector.observe(empty_readings(), windows(alternating(12)))
    alarms = []
    for turn, shift in enumerate((0.9, -0.9, 0.9, -0.9)):
        swinging = windows(alternating(12), shift=shift, first=144 * (turn + 1))
        alarms += sorted({item.ts for item in detector.observe(empty_readings(), swinging)})
    assert alarms
    assert (np.diff(alarms) >= COOLDOWN_S).all()


def test_after_an_alarm_windows_are_counted_on():
    """Change points are places in this count, so it may not stand still for the rest of a run."""
    detector = ConfirmedDetector()
    detector.observe(empty_readings(), windows(alternating(12)))
    drifted = windows(alternating(12), shift=0.9, first=144)
    assert detector.observe(empty_readings(), drifted)
    assert detector.state.index == 288
    assert [stretch.first_index for stretch in detector.state.stretches][-1] == 277


def test_severity_grows_with_the_effect_and_direction_follows_the_mean():
    """Subscribers filter on these."""
    assert [change(effect=effect).severity for effect in (0.1, 3.99, 4, 7.99, 8)] == [
        "info",
        "info",
        "warning",
        "warning",
        "critical",
    ]
    assert change(before=1.0, after=-1.0).direction == "down"
    assert change(before=1.0, after=1.0).direction == "up"


def test_a_detection_tells_the_means_on_both_sides_and_how_many_values_ago():
    """river says neither; the event needs both."""
    window = AdaptiveWindow(0.002)
    series = [0.0, 0.2] * 300 + [1.0, 1.2] * 100
    at, detection = next((at, found) for at, value in enumerate(series) if (found := window.update(value)) is not None)
    assert detection.after == pytest.approx(np.mean(series[at + 1 - detection.width : at + 1]))
    assert detection.before == pytest.approx(np.mean(series[: at + 1 - detection.width]))
    assert detection.after > 0.5
    assert (window.count, window.total) == (0, 0.0)
