"""Candidates learn from the anchor, its turned copy and a small share of recent windows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_info

from schemas.activity import ACCELERATION, ATTITUDE, GRAVITY, ROTATION
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.windows import WINDOW, gravity_of
from workers.training import (
    Labelled,
    bouts_of,
    candidates,
    fit,
    fit_all,
    rotated_copy,
    stuck_copy,
    training_set,
    weights,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def windows(count, seed=0):
    values = rng(seed).normal(0, 0.3, (count, WINDOW, 12))
    values[..., GRAVITY] = gravity_of(values[..., ATTITUDE])
    return values


def clouds(seed=0, classes=3, each=60, distance=2.0):
    """Labelled points around one centre a class."""
    labels = np.repeat(np.arange(classes), each)
    return rng(seed).normal(0, 1, (len(labels), 8)) + distance * np.eye(classes, 8)[labels], labels


def test_a_bout_ends_where_activity_or_device_change_or_time_is_missing():
    labels = np.array([4, 4, 0, 0, 4, 4, 4])
    devices = np.array(["a", "a", "a", "b", "b", "b", "b"])
    starts = np.array([0.0, 1.28, 2.56, 3.84, 5.12, 6.4, 100.0])
    assert bouts_of(labels, devices, starts).tolist() == [0, 0, 1, 2, 3, 3, 4]


def test_bouts_do_not_depend_on_the_order_of_the_windows():
    """Windows of many devices arrive interleaved."""
    labels, starts = np.array([4, 0, 4, 0]), np.array([0.0, 0.0, 1.28, 1.28])
    assert bouts_of(labels, np.array([1, 2, 1, 2]), starts).tolist() == [0, 1, 0, 1]


def test_a_turned_copy_keeps_lengths_and_angles():
    """Gravity, acceleration and rotation turn together, as they do when the phone is turned."""
    values = windows(6)
    turned = rotated_copy(values, np.array([0, 0, 0, 1, 1, 1]), rng())
    for vector in (GRAVITY, ROTATION, ACCELERATION):
        np.testing.assert_allclose(
            np.linalg.norm(turned[..., vector], axis=-1), np.linalg.norm(values[..., vector], axis=-1)
        )
    for vector in (ROTATION, ACCELERATION):
        np.testing.assert_allclose(
            (turned[..., vector] * turned[..., GRAVITY]).sum(-1), (values[..., vector] * values[..., GRAVITY]).sum(-1)
        )
    assert np.abs(turned[..., GRAVITY] - values[..., GRAVITY]).max() > 0.1


def test_a_turned_copys_attitude_agrees_with_its_gravity_and_keeps_its_heading():
    values = windows(4)
    turned = rotated_copy(values, np.arange(4), rng())
    np.testing.assert_allclose(gravity_of(turned[..., ATTITUDE]), turned[..., GRAVITY], atol=1e-9)
    np.testing.assert_array_equal(turned[..., 2], values[..., 2])


def test_a_bout_turns_as_one_and_bouts_turn_differently():
    values = np.repeat(windows(1), 4, axis=0)
    turned = rotated_copy(values, np.array([7, 7, 9, 9]), rng())
    np.testing.assert_array_equal(turned[0], turned[1])
    assert np.abs(turned[1] - turned[2]).max() > 0.05


def test_a_turned_copy_leaves_the_windows_it_was_made_from_untouched():
    values = windows(2)
    before = values.copy()
    rotated_copy(values, np.arange(2), rng())
    np.testing.assert_array_equal(values, before)


def test_a_copy_is_turned_no_further_than_asked():
    values = windows(200)
    turned = rotated_copy(values, np.arange(200), rng(), max_degrees=10)
    cosine = (turned[:, 0, GRAVITY] * values[:, 0, GRAVITY]).sum(-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() <= 10 + 1e-6


def test_recent_windows_carry_a_tenth_of_a_class_that_has_both():
    labels = np.array([0] * 100 + [0] * 5 + [1] * 40 + [2] * 3)
    is_recent = np.array([False] * 100 + [True] * 5 + [False] * 40 + [True] * 3)
    weight = weights(labels, is_recent)
    of_first = labels == 0
    assert weight[of_first & is_recent].sum() == pytest.approx(0.1 * weight[of_first].sum())
    assert weight[of_first].sum() == pytest.approx(105), "a class keeps the weight of its windows"
    assert (weight[labels == 1] == 1).all(), "no recent windows: nothing to share with"
    assert (weight[labels == 2] == 1).all(), "nothing older: nothing to share with"


def test_a_stuck_copy_holds_one_axis_of_the_accelerometer_in_each_bout():
    values, bouts = windows(300), np.repeat(np.arange(100), 3)
    stuck = stuck_copy(values, bouts, rng())
    changed = (stuck != values).any(1)
    assert not changed[:, [i for i in range(12) if i not in range(ACCELERATION.start, ACCELERATION.stop)]].any()
    seen = set()
    for bout in range(100):
        rows = bouts == bout
        [channel] = np.flatnonzero(changed[rows].any(0)).tolist()
        assert (stuck[rows][:, :, channel] == values[rows][0, 0, channel]).all()
        seen.add(channel)
    assert seen == set(range(ACCELERATION.start, ACCELERATION.stop))


def test_a_training_set_holds_the_anchor_and_two_copies_and_the_recent_windows_as_they_are():
    """Recent windows show how the sensor sits now; turning them would blur what is to be learned."""
    anchor = Labelled(windows(4), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    recent = Labelled(windows(2, seed=1), np.array([0, 0]), np.array([0, 0]))
    table, labels, weight = training_set(anchor, recent, FEATURES, rng())
    assert table.shape == (12, len(FEATURES))
    assert labels[:8].tolist() == [0, 0, 1, 1] * 2
    assert labels[8:].tolist() in ([0, 0, 0, 0], [1, 1, 0, 0]), "one bout of two, stuck; then the recent windows"
    np.testing.assert_array_equal(table[:4], features(anchor.values))
    np.testing.assert_array_equal(table[10:], features(recent.values))
    assert np.abs(table[4:8] - table[:4]).max() > 0.01
    assert np.abs(table[8:10] - table[2 * labels[8] : 2 * labels[8] + 2]).max() > 0.01
    assert weight[10:].sum() == pytest.approx(0.1 * weight[labels == 0].sum())


def test_a_first_model_learns_without_recent_windows_and_without_a_gyroscope():
    values = windows(4)
    values[..., ROTATION] = np.nan
    anchor = Labelled(values, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    table, _, weight = training_set(anchor, None, FEATURES_WITHOUT_ROTATION, rng())
    assert np.isfinite(table).all()
    assert (weight == 1).all()


def test_the_candidates_are_the_five_by_name_each_with_its_scaling_inside():
    """What is registered must take raw features: nobody scales for it in the serving app."""
    made = candidates(0)
    assert [name for name, _ in made] == [
        "logistic-regression",
        "hist-gradient-boosting",
        "extra-trees",
        "k-nearest-neighbours",
        "gaussian-naive-bayes",
    ]
    assert all(type(pipeline[0]).__name__ == "StandardScaler" for _, pipeline in made)


@pytest.mark.parametrize("index", range(5))
def test_every_candidate_learns_and_the_same_seed_gives_the_same_model(index):
    """A repeated job must end in the same model, or the event's id would name two."""
    table, labels = clouds()
    unseen, truth = clouds(seed=1)
    weight = np.ones(len(labels))
    first, second = (fit(candidates(3)[index][1], table, labels, weight, 3).predict_proba(unseen) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first.argmax(1) == truth).mean() > 0.7


@pytest.mark.parametrize("index", range(5))
def test_every_candidate_heeds_the_weights(index):
    """Half of the labels contradict the other half; whoever weighs more is believed."""
    table, labels = clouds(distance=4.0)
    table, told = np.concatenate([table, table]), np.concatenate([labels, (labels + 1) % 3])
    weight = np.where(np.arange(len(told)) < len(labels), 1.0, 0.02)
    model = fit(candidates(0)[index][1], table, told, weight, 0)
    assert (model.predict(table[: len(labels)]) == labels).mean() > 0.9


def test_a_candidate_that_fails_is_reported_and_the_others_go_on():
    table, labels = clouds()
    broken = Pipeline([("classify", LogisticRegression(C=-1.0))])
    reported = []
    fitted = fit_all(
        [("broken", broken), candidates(0)[0]],
        table,
        labels,
        np.ones(len(labels)),
        seed=0,
        failed=lambda name, error: reported.append((name, type(error).__name__)),
        clock=iter([10.0, 20.0, 22.5]).__next__,
    )
    assert [(model.name, model.fit_seconds) for model in fitted] == [("logistic-regression", 2.5)]
    assert [name for name, _ in reported] == ["broken"]


def test_a_fit_has_one_thread_of_the_libraries_beneath():
    """Several wait for one another in loops; beside other work a second became fifty."""
    seen = []

    class Watched(GaussianNB):
        def fit(self, rows, told, sample_weight=None):
            seen.append({each["num_threads"] for each in threadpool_info()})
            return super().fit(rows, told, sample_weight)

    table, labels = clouds()
    fit(Pipeline([("classify", Watched())]), table, labels, np.ones(len(labels)), 0)
    assert seen == [{1}]
