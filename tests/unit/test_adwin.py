"""river's ADWIN, fed by the column: the same alarms as its public interface gives, value by value."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import ADWIN

from schemas.activity import CHANNELS
from streams.adwin import RawDetector
from streams.windows import Readings, no_windows


def readings(count=6000, seed=3, gap=None):
    """White noise whose level changes every few hundred readings; rows of `gap` have no rotationRate."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(0, 0.4, (count // 500 + 1, len(CHANNELS))), 500, axis=0)[:count]
    values = levels + rng.normal(0, 0.1, levels.shape)
    if gap is not None:
        values[gap, 6:9] = np.nan
    index = np.arange(count)
    return Readings(1.7e9 + index / 50, values, np.full(count, -1), index)


def in_parts(whole, bounds):
    detector, found = RawDetector(), []
    for start, end in pairwise([0, *sorted(bounds), len(whole)]):
        if end > start:
            found += detector.observe(whole.part(start, end), no_windows())
    return found, detector.dump()


def by_the_book(whole, rows):
    """(feature, offset) of each alarm of river's documented loop."""
    found = []
    for row in rows:
        adwin = ADWIN()
        for offset, value in zip(whole.offsets.tolist(), whole.values[:, row].tolist(), strict=True):
            if not np.isnan(value):
                adwin.update(value)
                if adwin.drift_detected:
                    found.append((CHANNELS[row].name, offset))
    return sorted(found)


@pytest.mark.parametrize("gap", [None, slice(1000, 3000), slice(0, None)])
def test_alarms_are_those_of_rivers_own_loop(gap):
    """Whoever has used river's ADWIN before must find the same drifts here."""
    whole = readings(gap=gap)
    found, _ = in_parts(whole, [])
    assert len(found) > 20
    assert sorted((change.feature, change.offset) for change in found) == by_the_book(whole, RawDetector().rows)


@given(bounds=st.lists(st.integers(0, 6000), max_size=8))
@settings(max_examples=10, deadline=None)
def test_changes_and_state_do_not_depend_on_the_chunks(bounds):
    """How many readings a fetch brings is chance."""
    whole = readings(gap=slice(1000, 3000))
    assert in_parts(whole, bounds) == in_parts(whole, [])


def test_a_change_says_how_far_and_since_when():
    """The retraining begins at the change, not at the alarm."""
    rng = np.random.default_rng(1)
    index = np.arange(2000)
    values = np.zeros((2000, len(CHANNELS)))
    values[:, 0] = np.where(index < 1000, 0.1, 0.9) + rng.normal(0, 0.05, 2000)
    found, _ = in_parts(Readings(1.7e9 + index / 50, values, np.full(2000, -1), index), [])
    (change,) = [item for item in found if item.feature == "attitude.roll"]
    assert change.before == pytest.approx(0.1, abs=0.02)
    assert change.after > change.before + 0.2  # ADWIN's window still holds some readings from before
    assert 900 <= change.change_offset <= 1010 <= change.offset
    assert change.effect > 2


def test_an_agent_starts_without_the_libraries_that_only_training_needs():
    """They are a second and 150 MB of each start, and a restart is a pause in which nobody watches."""
    program = "import sys, workers.agent; print(*{'sklearn', 'scipy', 'pandas', 'mlflow'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
