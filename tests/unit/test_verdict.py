"""Whether a deployed version has helped: what a person is told, and what sends it back."""

import numpy as np
import pytest

from schemas.envelope import envelope
from tests.unit.controlling import decision, deployed, drift, learned, told
from workers.controller import Controller, Policy
from workers.verdict import prove

LABELS = np.repeat(np.arange(5), 24)
BOUTS = np.arange(len(LABELS)) // 12


def wrong(share, seed=0):
    answers = LABELS.copy()
    rows = np.random.default_rng(seed).random(len(LABELS)) < share
    answers[rows] = (answers[rows] + 1) % 5
    return answers


@pytest.mark.parametrize(
    ("new", "previous", "outcome"),
    [(0.02, 0.4, "helped"), (0.4, 0.02, "harmed"), (0.1, 0.1, "no-effect"), (0.1, 0.12, "no-effect")],
)
def test_both_versions_are_asked_about_the_same_windows_and_the_difference_decides(new, previous, outcome):
    """A score that rose because the day was easy proves nothing."""
    found = prove(LABELS, BOUTS, wrong(new), wrong(previous), margin=0.02, again=0)
    assert found.outcome == outcome
    assert found.numbers["after.new"] == pytest.approx(1 - new, abs=0.1)
    assert "the drift is gone" in found.detail


def test_what_a_few_windows_do_not_tell_is_no_verdict_yet():
    """A version that harms would be kept for good if the first two minutes happened to say nothing."""
    some = slice(0, 48)
    unsure = prove(LABELS[some], BOUTS[some], wrong(0.3, 1)[some], wrong(0.3, 2)[some], margin=0.02, again=0)
    assert (unsure.outcome, unsure.sure) == ("no-effect", False)
    assert prove(LABELS, BOUTS, wrong(0.1), wrong(0.1), margin=0.02, again=0).sure
    assert prove(LABELS, BOUTS, wrong(0.4), wrong(0.02), margin=0.02, again=0).sure


def test_without_labels_nothing_is_claimed():
    """Silence is no proof."""
    few = slice(0, 10)
    found = prove(LABELS[few], BOUTS[few], LABELS[few], LABELS[few], margin=0.02, again=0)
    assert (found.outcome, found.reason) == ("no-effect", "no-labels")


def test_a_drift_that_came_again_is_told_with_the_verdict():
    """A model may do better and the device still drift."""
    found = prove(LABELS, BOUTS, wrong(0.0), wrong(0.5), margin=0.02, again=2)
    assert (found.outcome, found.numbers["drifts.since"]) == ("helped", 2)
    assert "2 drifts since" in found.detail


def test_only_a_deployment_after_a_drift_wants_a_verdict_and_only_one():
    """The first model has nothing to be compared with; a person's choice is a person's."""
    controller = Controller("activity", Policy())
    controller.see(told(deployed("1", "1", "first"), "d1"))
    assert controller.unproved() is None
    controller.see(told(deployed("2", "1"), "d2"))
    assert controller.unproved()[0].id == "d2"
    assert controller.unproved()[1], "it serves"
    controller.see(told(deployed("3", "1"), "d3"))
    assert not controller.unproved()[1], "another version took its place"
    said = decision("verdict", "helped", "better-after", "d2")
    controller.see(told(said, "v"))
    assert controller.unproved()[0].id == "d3"


@pytest.mark.parametrize(("root", "wants"), [("asked", True), ("another request", False)])
def test_what_was_trained_by_hand_wants_a_verdict_and_what_was_promoted_by_hand_does_not(root, wants):
    """Whoever asked for a training wants to know whether it helped."""
    controller = Controller("activity", Policy())
    controller.see(envelope(learned("1", 0, 400), id="r1", source="s", subject="", time=0))
    controller.see(envelope(learned("2", 400, 700), id="r", source="s", subject="", time=1, root="asked"))
    controller.see(envelope(deployed("2", "1", "manual"), id="d2", source="s", subject="", time=2, root=root))
    assert (controller.unproved() is not None) == wants


def test_drifts_count_as_come_again_only_behind_what_was_learned():
    """What led to the training lies within its window, or before."""
    controller = Controller("activity", Policy())
    version = learned("2", 400, 1000, device="phone-07")
    for number, change in enumerate((300, 700, 1100, 1100)):
        controller.see(told(drift(offset=change + 50, change=change), f"e{number}"))
    controller.see(told(drift(offset=1200, change=1150, device="phone-08"), "another"))
    assert controller.drifts_since(version.window) == 1
