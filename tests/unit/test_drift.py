"""What the detectors find on simulated people, and what they leave alone. Figures on real ones: tests/bench."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from schemas.activity import CHANNELS
from streams.detectors import DETECTORS
from streams.drift import Change
from streams.simulator import simulate
from streams.windows import NO_LABEL, Readings, cut

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


def test_severity_grows_with_the_effect_and_direction_follows_the_mean():
    """Subscribers filter on these."""
    assert [change(effect=effect).severity for effect in (0.1, 3.99, 4, 7.99, 8)] == [
        "info",
        "info",
        "warning",
        "warning",
        "critical",
    ]
    worse = ({"breadth": 4}, {"bouts": 5}, {"hurts": True})
    assert [change(effect=0.1, **each).severity for each in worse] == ["warning"] * 3
    assert change(effect=0.1, breadth=4, bouts=5).severity == "critical"
    assert change(before=1.0, after=-1.0).direction == "down"
    assert change(before=1.0, after=1.0).direction == "up"
