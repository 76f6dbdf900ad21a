"""A retraining on given windows: what is proved is not what was chosen on, and no gain is no promotion."""

import numpy as np
import pytest

from schemas.activity import ACTIVITIES
from schemas.settings import Settings
from streams.inject import apply, parse_drift
from streams.replay import Replayed
from streams.simulator import simulate
from streams.windows import Readings, cut
from workers import training, trial
from workers.dataset import piece_of
from workers.evaluation import Scores
from workers.training import Fitted
from workers.trial import Model, best_of, run_trial

SETTINGS = Settings(_env_file=None, anchor_loss=1.0, class_loss=1.0)


@pytest.fixture(scope="module")
def module_patch():
    """Two quick candidates for five: which they are makes no difference here."""
    quick = ("logistic-regression", "gaussian-naive-bayes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trial, "candidates", lambda seed: [item for item in training.candidates(seed) if item[0] in quick]
        )
        yield


def piece(people):
    windows = {
        each.device: cut(Readings(each.ts, each.values, each.labels, np.arange(len(each))))[0] for each in people
    }
    return piece_of(Replayed(None, windows), SETTINGS)


@pytest.fixture(scope="module")
def world(module_patch):
    """What a first model has learned, the model, and a device that it does not know."""
    kind = {"bout_seconds": (12.0, 30.0), "mix": dict.fromkeys(ACTIVITIES, 1.0)}
    anchor = piece(simulate(3, 200.0, 3, 1.7e9, **kind))
    first = run_trial(anchor, [], None, SETTINGS, seed=1)
    [new] = simulate(1, 400.0, 4, 1.8e9, first=9, **kind)
    return anchor, Model("1", first.best.pipeline, first.names), new


def test_a_version_is_proved_on_windows_that_it_was_not_chosen_on(world):
    """The best of five on a few windows is often only the luckiest."""
    anchor, champion, new = world
    recent = piece([apply(new, parse_drift("noise:0.4@0"), np.random.default_rng(1))])
    found = run_trial(recent, [anchor], champion, SETTINGS, seed=2, forced=True)
    assert found.verdict.promote
    assert found.numbers["windows.recent"] == (~recent.held_out).sum()
    assert 0 < found.numbers["gain.low"] < found.numbers["challenger.recent"] - found.numbers["champion.recent"]
    again = run_trial(recent, [anchor], champion, SETTINGS, seed=2, forced=True)
    assert again.numbers | {"seconds": 0} == found.numbers | {"seconds": 0}, "the same seed, the same proof"


def test_labels_that_mean_nothing_promote_nothing(world):
    """Whoever learns noise shows no gain on the noise that he has not seen."""
    anchor, champion, new = world
    recent = piece([new])
    bouts = np.unique(recent.bouts)
    drawn = np.random.default_rng(5).permutation(recent.labels[np.searchsorted(recent.bouts, bouts, side="left")])
    recent.labels[:] = drawn[np.searchsorted(bouts, recent.bouts)]
    assert not run_trial(recent, [anchor], champion, SETTINGS, seed=3, forced=True).verdict.promote


@pytest.mark.parametrize(
    ("second", "passed", "chosen"),
    [
        (0.909, (True, True), "first"),
        (0.911, (True, True), "second"),
        (0.95, (True, True), "second"),
        (0.95, (True, False), "first"),
        (0.95, (False, False), "second"),
    ],
    ids=["as good", "hardly better", "better", "stopped by the gate", "none passes"],
)
def test_the_first_candidate_that_is_as_good_as_the_best_is_taken(second, passed, chosen):
    """A hundredth on three people held out is chance; the quicker one answers quicker every day."""
    fitted = [Fitted(name, None, 0.0) for name in ("first", "second")]
    scores = {"first": Scores(0.9, 0.9), "second": Scores(second, 0.9)}
    assert best_of(fitted, scores, dict(zip(scores, passed, strict=True))).name == chosen
