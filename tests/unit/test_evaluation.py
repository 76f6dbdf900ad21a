"""Scores are on windows that a model has not seen, and the gate lets only better models through."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from streams.windows import HOP, WINDOW
from workers.evaluation import GATE_LEVEL, Scores, blocks_of, confusion, halves, judge, macro_f1, paired_interval, split
from workers.figures import confusion_figure, drift_effects, feature_figure

MARGIN, ANCHOR_LOSS = 0.02, 0.03
CHAMPION = Scores(recent=0.61, anchor=0.95)


def recording(devices, activities=3, bout=20, rounds=2):
    """labels, devices and starts of devices that go through each activity for `bout` windows, `rounds` times."""
    labels = np.tile(np.repeat(np.arange(activities), bout), rounds)
    starts = np.arange(len(labels)) * HOP / 50
    return np.tile(labels, devices), np.repeat(np.arange(devices), len(labels)), np.tile(starts, devices)


def judged(recent, anchor, champion=CHAMPION):
    verdict = judge(Scores(recent, anchor), champion, MARGIN, ANCHOR_LOSS)
    return verdict.promote, verdict.reason


def test_macro_f1_is_scikit_learns_over_the_classes_that_are_there():
    """A held-out window without any jogging must not score a model zero on jogging."""
    rng = np.random.default_rng(0)
    truth, said = rng.choice([0, 1, 3], 200), rng.choice([0, 1, 3, 5], 200)
    assert macro_f1(truth, said) == pytest.approx(f1_score(truth, said, labels=[0, 1, 3], average="macro"))
    assert macro_f1(truth, truth) == 1.0


def test_scoring_nothing_is_an_error_not_a_perfect_score():
    with pytest.raises(ValueError, match="no windows"):
        macro_f1(np.empty(0, int), np.empty(0, int))


def test_a_confusion_matrix_counts_labels_in_rows_and_answers_in_columns():
    counts = confusion(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_whole_devices_are_held_out_when_there_are_enough():
    """Windows of one person resemble each other; a score on a seen person would flatter."""
    labels, devices, starts = recording(8)
    parts = split(labels, devices, starts, seed=0)
    assert parts.by == "device"
    assert len(set(devices[parts.held_out])) == 2
    assert not set(devices[parts.held_out]) & set(devices[parts.train])
    assert (parts.train ^ parts.held_out).all()


def test_the_same_seed_holds_the_same_devices_out():
    labels, devices, starts = recording(12)
    held_out = [split(labels, devices, starts, seed).held_out for seed in (5, 5, 6)]
    np.testing.assert_array_equal(held_out[0], held_out[1])
    assert (held_out[0] != held_out[2]).any()


@pytest.mark.parametrize("seed", range(5))
def test_every_activity_is_on_both_sides_if_any_draw_of_devices_allows_it(seed):
    labels, devices, starts = recording(8)
    labels[(labels == 2) & (devices > 1)] = 0  # only two devices know activity 2
    parts = split(labels, devices, starts, seed)
    assert parts.by == "device"
    assert set(labels[parts.train]) == set(labels[parts.held_out]) == {0, 1, 2}


def test_time_splits_when_no_draw_of_devices_leaves_every_activity_on_both_sides():
    labels, devices, starts = recording(8)
    labels[(labels == 2) & (devices > 0)] = 0
    assert split(labels, devices, starts, seed=0).by == "time"


def test_with_few_devices_the_last_part_of_each_activity_is_held_out():
    labels, devices, starts = recording(2, bout=20, rounds=2)
    parts = split(labels, devices, starts, seed=0)
    assert parts.by == "time"
    for device in (0, 1):
        for label in (0, 1, 2):
            rows = (devices == device) & (labels == label)
            assert (rows & parts.held_out).sum() == 12
            assert starts[rows & parts.train].max() < starts[rows & parts.held_out].min()


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_no_reading_is_both_learned_from_and_scored_on(order):
    """Neighbouring windows share half of their readings."""
    labels, devices, starts = recording(1, activities=1, bout=50, rounds=1)
    if order == "shuffled":
        starts = np.random.default_rng(0).permutation(starts)
    parts = split(labels, devices, starts, seed=0)
    seen = {round(start * 50) + sample for start in starts[parts.train] for sample in range(WINDOW)}
    scored = {round(start * 50) + sample for start in starts[parts.held_out] for sample in range(WINDOW)}
    assert not seen & scored
    assert (~parts.train & ~parts.held_out).sum() == 1


def test_an_activity_of_a_single_window_is_learned_rather_than_scored():
    parts = split(np.array([0, 1]), np.zeros(2, int), np.array([0.0, 5.0]), seed=0)
    assert parts.train.all()
    assert not parts.held_out.any()


def test_the_first_model_is_promoted():
    assert judged(0.4, None, champion=None) == (True, "first-model")


def test_a_challenger_that_is_better_on_recent_data_is_promoted():
    assert judged(0.93, 0.95) == (True, "better-on-recent")


def test_a_gain_below_the_margin_changes_nothing():
    """Every swap is a risk; noise in a score must not cause one."""
    assert judged(0.62, 0.99) == (False, "not-better")
    at_margin = judged(0.83, 0.95, champion=Scores(0.81, 0.95))  # 0.83 - 0.81 is 0.0199999…
    assert at_margin == (True, "better-on-recent"), "the margin itself is enough"


def test_a_challenger_that_forgets_what_went_before_is_held_back():
    assert judged(0.93, 0.90) == (False, "forgets-anchor")
    at_limit = judged(0.93, 0.90, champion=Scores(0.61, 0.93))  # 0.93 - 0.90 is 0.0300000…3
    assert at_limit == (True, "better-on-recent"), "the allowed loss itself is allowed"


def test_without_recent_windows_to_compare_on_the_champion_stays():
    assert judged(None, 0.99) == (False, "no-held-out-data")


def test_without_anchor_windows_the_recent_ones_decide_and_the_detail_says_so():
    verdict = judge(Scores(0.93, None), CHAMPION, MARGIN, ANCHOR_LOSS)
    assert verdict.promote
    assert "no anchor" in verdict.detail


def test_a_verdict_tells_the_numbers_that_it_rests_on():
    detail = judge(Scores(0.93, 0.85), CHAMPION, MARGIN, ANCHOR_LOSS).detail
    for number in ("0.610", "0.930", "0.950", "0.850", "0.100", "0.030"):
        assert number in detail


def test_the_confusion_figure_shows_every_count():
    figure = confusion_figure(np.array([[17, 3], [0, 0]]), ("wlk", "jog"), "held out")
    assert {text.get_text() for text in figure.axes[0].texts} == {"17", "3", "0"}
    figure.canvas.draw()


def test_the_feature_figure_puts_the_most_drifted_feature_on_top():
    rng = np.random.default_rng(0)
    anchor, recent = rng.normal(size=(300, 30)), rng.normal(size=(100, 30))
    recent[:, 17] += 3
    anchor[:, 5] = recent[:, 5] = 1.0  # a feature that never moves has no spread to divide by
    effects = drift_effects(anchor, recent)
    assert np.isfinite(effects).all()
    assert np.abs(effects).argmax() == 17
    figure = feature_figure(anchor, recent, [f"feature {index}" for index in range(30)], "what drifted")
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == 12
    assert rows[-1].startswith("feature 17 ")
    figure.canvas.draw()


def test_a_gain_that_a_few_windows_show_is_held_and_not_promoted():
    """Thirty windows can favour a model by luck; a promotion by luck is a coin toss with users' readings."""
    labels = np.repeat(np.arange(3), 10)
    champion, challenger = labels.copy(), labels.copy()
    champion[[0, 12, 21]] = 2 - champion[[0, 12, 21]]
    low, high = paired_interval(labels, blocks_of(np.arange(30) // 5), challenger, champion)
    assert low < 0.0 < high
    held = judge(Scores(0.95, 0.9), Scores(0.9, 0.9), 0.02, 0.01, interval=(-0.01, 0.1))
    assert (held.outcome, held.reason) == ("held", "uncertain")
    assert not held.promote


def test_the_interval_is_paired_so_what_both_find_hard_does_not_widen_it():
    """Two models asked different windows would have to differ by far more to be told apart."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 60)
    hard = rng.random(len(labels)) < 0.4
    champion = np.where(hard, (labels + 1) % 4, labels)
    better = champion.copy()
    fixed = np.flatnonzero(hard)[::4]
    better[fixed] = labels[fixed]
    blocks = blocks_of(np.arange(len(labels)) // 20)
    low, high = paired_interval(labels, blocks, better, champion)
    gain = macro_f1(labels, better) - macro_f1(labels, champion)
    assert 0 < low < gain < high
    assert paired_interval(labels, blocks, champion, champion) == (0.0, 0.0)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_of_versions_that_are_no_better_at_most_one_in_twenty_looks_surely_better(most):
    """Blocks of one bout go right or wrong together; with few of them luck looks like skill."""
    rng = np.random.default_rng(3)
    worlds, sure = 400, 0
    for _ in range(worlds):
        activities = np.repeat(np.arange(5), rng.integers(1, most + 1, 5))
        labels, blocks = np.repeat(activities, 8), np.arange(8 * len(activities)) // 8
        hard = rng.beta(0.4, 1.6, len(activities))
        answers = [
            np.where(
                rng.random(len(labels)) < np.repeat(hard + 0.3 * rng.standard_normal(len(hard)), 8),
                (labels + rng.integers(1, 5, len(labels))) % 5,
                labels,
            )
            for _ in range(2)
        ]
        sure += paired_interval(labels, blocks, *answers, GATE_LEVEL)[0] > 0
    assert sure / worlds <= 0.05


@pytest.mark.parametrize(("activities", "sure"), [(3, False), (6, True)])
def test_activities_of_a_single_block_each_prove_something_only_together(activities, sure):
    """A version that has gone wrong in all of them must be sent back after two minutes, not after ten."""
    labels = np.repeat(np.arange(activities), 8)
    low, high = paired_interval(labels, labels, (labels + 1) % activities, labels)
    assert low <= -1.0 <= high
    assert (high < 0) is sure


@pytest.mark.parametrize(("devices", "by"), [(1, "time"), (8, "device")])
def test_halves_hold_each_window_out_once_and_share_no_reading_with_what_is_learned(devices, by):
    """What proves a version must be all that was not chosen on, and nothing that it has learned."""
    labels, names, starts = recording(devices)
    rows = ~split(labels, names, starts, seed=0).held_out
    blocks = np.arange(len(labels)) // 5
    parts = halves(labels, names, starts, blocks, rows)
    assert {part.by for part in parts} == {by}
    np.testing.assert_array_equal(parts[0].held_out.astype(int) + parts[1].held_out, rows)
    for part in parts:
        assert 0.3 < part.held_out.sum() / rows.sum() < 0.7
        for device in np.unique(names):
            mine = names == device
            learned, scored = starts[mine & part.train], starts[mine & part.held_out]
            if len(learned) and len(scored):
                assert np.abs(learned[:, None] - scored).min() >= WINDOW / 50 - 0.01


def test_a_block_is_a_few_windows_of_one_bout():
    """Neighbouring windows share readings: drawn one by one they would pretend to be independent."""
    blocks = blocks_of(np.repeat([0, 1], [28, 3]))
    assert blocks.tolist() == [0] * 24 + [1] * 4 + [2] * 3


def test_a_challenger_that_forgets_one_activity_is_rejected_whatever_the_mean_says():
    """A mean over six activities hides that stairs are gone."""
    verdict = judge(Scores(0.9, 0.9), Scores(0.7, 0.9), 0.02, 0.01, lost=("ups", 0.2), class_loss=0.1)
    assert (verdict.outcome, verdict.reason) == ("rejected", "class-floor")
    assert "ups" in verdict.detail
