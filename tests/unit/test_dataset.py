"""Readings that nobody should train on end in a named decision."""

import numpy as np
import pytest

from schemas.events import TrainingWindow
from schemas.settings import Settings
from streams.replay import Replayed
from streams.simulator import simulate
from streams.windows import NO_LABEL, Readings, cut
from workers.dataset import piece_of, ripe
from workers.retrain_task import Decline

WINDOW = TrainingWindow(topic="activity", ranges=[], rows=0, sha256="")


@pytest.fixture
def windows():
    [played] = simulate(1, 120.0, 3, 1.7e9, bout_seconds=(12.0, 20.0))
    return cut(Readings(played.ts, played.values, played.labels, np.arange(len(played))))[0]


def refused(windows) -> str:
    with pytest.raises(Decline) as caught:
        piece_of(Replayed(WINDOW, {"p": windows}), Settings(_env_file=None))
    return caught.value.declined.reason


def test_readings_without_labels_are_refused(windows):
    """Nothing can be learned from them, and no exception's text tells a person so."""
    windows.labels[:] = NO_LABEL
    assert refused(windows) == "no-labels"


def test_readings_of_one_activity_only_are_refused(windows):
    """A classifier of one class would name everything alike, and score well on itself."""
    windows.labels[:] = 2
    assert refused(windows) == "one-activity"
    assert len(piece_of(Replayed(WINDOW, {"p": windows}), Settings(_env_file=None), activities=1)) == len(windows)


def test_readings_that_are_all_flagged_are_refused(windows):
    """A stuck sensor for the whole time: learned, it would break the model for all others."""
    windows.values[:, :, 9] = 0.25
    assert refused(windows) == "quality"


@pytest.mark.parametrize(
    ("counts", "ready"),
    [
        ([40, 40, 40, 40, 40, 40], (False, False)),
        ([100, 100, 100, 100, 4, 0], (False, False)),
        ([100, 60, 60, 40, 20, 0], (True, False)),
        ([100, 60, 60, 40, 20, 9], (True, False)),
        ([100, 60, 60, 40, 20, 10], (True, True)),
        ([200, 80, 80, 40, 20, 0], (True, True)),
    ],
    ids=["too few", "of too few activities", "one is missing", "one is hardly there", "all", "one never comes"],
)
def test_a_retraining_waits_a_while_for_the_activities_that_are_missing(counts, ready):
    """What an activity lacks limits what a retraining heals."""
    may, full = ripe(np.array(counts), Settings(_env_file=None))
    assert (bool(may), bool(full)) == ready
