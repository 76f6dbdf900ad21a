"""Why a drift is there: what must never be trained on is told from what may be learned."""

import numpy as np
import pytest

from tests.unit.controlling import DEVICE, drift
from workers.triage import triage

EVEN = np.repeat(np.arange(6), 20)
SITTING = np.concatenate([np.full(90, 2), np.arange(6).repeat(5)])


def wrong(labels, share):
    answers = labels.copy()
    for code in np.unique(labels):
        rows = np.flatnonzero(labels == code)
        answers[rows[: round(share * len(rows))]] = (code + 1) % 6
    return answers


def cause(drifts, before=EVEN, after=EVEN, errs=0.2, known=(DEVICE, "phone-01")):
    found = triage(drifts, known, (before, wrong(before, 0.05)), (after, wrong(after, errs)), 0.02)
    assert "recall.fell" in found.numbers, "a cause without evidence cannot be questioned"
    return found.cause


def test_another_mix_of_activities_is_told_as_such_where_the_detector_does_not_know_activities():
    """Whoever sits all day has not broken the model: raw detectors fire, and learning the mix would bias it."""
    raw = drift(test="adwin")
    assert cause([raw], after=SITTING, errs=0.0) == "changed-mix"
    assert cause([raw], after=SITTING, errs=0.5) != "changed-mix", "it hurts within activities"
    assert cause([raw], after=EVEN, errs=0.0) != "changed-mix", "the mix is the same"
    assert cause([drift(test="statistic")], after=SITTING, errs=0.0) != "changed-mix", "already conditioned on"


@pytest.mark.parametrize(
    ("event", "known", "named"),
    [
        (drift(device="phone-99"), (DEVICE,), "new-device"),
        (drift(test="rotation", estimate={"rotation_deg": 44.0}), (DEVICE,), "carrying"),
        (drift(test="gain", estimate={"gain": 1.5}), (DEVICE,), "sensor"),
        (drift(test="error"), (DEVICE,), "model-error"),
        (drift(), (DEVICE,), "model-error"),
    ],
)
def test_what_may_be_learned_is_named_for_what_it_is(event, known, named):
    """A person mends a carrying otherwise than a sensor."""
    assert cause([event], known=known) == named


def test_a_drift_that_nothing_explains_is_not_given_a_cause():
    """A made-up cause is worse than none."""
    assert cause([drift()], errs=0.05) == "unknown"


def test_an_activity_of_two_windows_does_not_decide_whether_a_drift_hurts():
    """One stumble on the stairs would cost a training, or, the other way about, hide that walking is lost."""
    before = np.repeat([0, 4], [100, 100])
    after = np.repeat([0, 4], [2, 100])
    answers = after.copy()
    answers[0] = 1
    assert triage([drift()], (DEVICE,), (before, before), (after, answers), 0.02).fell < 0.02
    answers[2:12] = 3
    assert triage([drift()], (DEVICE,), (before, before), (after, answers), 0.02).fell > 0.09
