"""Which activity a window is judged in."""

import numpy as np

from schemas.activity import ACTIVITIES
from streams.conditioning import NOT_JUDGED, UNLABELLED_WINDOWS, Conditioner
from streams.windows import NO_LABEL, Windows

SITTING, WALKING = ACTIVITIES.index("sit"), ACTIVITIES.index("wlk")


def windows(labels, gap_before=None):
    end = 1.7e9 + 1.28 * np.arange(len(labels))
    if gap_before is not None:
        end[gap_before:] += 10
    none = np.zeros(len(labels), np.int64)
    return Windows(np.zeros((len(labels), 128, 12)), end - 2.54, end, none, none, np.array(labels))


def sure_of(*codes, by=0.8):
    """(n, 6) probabilities."""
    found = np.full((len(codes), len(ACTIVITIES)), (1 - by) / (len(ACTIVITIES) - 1))
    found[np.arange(len(codes)), codes] = by
    return found


def test_one_mistaken_window_does_not_end_a_bout():
    """Or each would be compared with the wrong activity, and count as a bout of its own."""
    seen = sure_of(*[WALKING] * 4, SITTING, *[WALKING] * 4)
    codes = Conditioner("model").activities(windows([NO_LABEL] * 9), seen)[0]
    assert codes == [WALKING] * 9


def test_nothing_is_carried_across_a_gap():
    """What somebody did before the phone was off says nothing about now."""
    seen = sure_of(WALKING, WALKING, SITTING)
    assert Conditioner("model").activities(windows([NO_LABEL] * 3), seen)[0][-1] == WALKING
    codes, _, _, gaps = Conditioner("model").activities(windows([NO_LABEL] * 3, gap_before=2), seen)
    assert codes[-1] == SITTING
    assert gaps == [True, False, True]


def test_a_label_outweighs_the_classifier_and_its_absence_among_labels_is_not_judged():
    """A window of two activities is neither."""
    codes, labelled, believed, _ = Conditioner("auto").activities(
        windows([SITTING, NO_LABEL, SITTING]), sure_of(WALKING, WALKING, WALKING)
    )
    assert codes == [SITTING, NOT_JUDGED, SITTING]
    assert labelled == [True, False, True]
    assert believed[0, SITTING] == 1


def test_a_device_that_no_longer_sends_labels_is_judged_by_the_model():
    """After a while without any; a label that is none is a dead letter of class `schema`, and nobody's activity."""
    count = UNLABELLED_WINDOWS + 10
    labels = [SITTING, *[NO_LABEL] * count]
    codes = Conditioner("auto").activities(windows(labels), sure_of(*[WALKING] * (count + 1)))[0]
    assert codes[1] == NOT_JUDGED
    assert codes[-1] == WALKING
