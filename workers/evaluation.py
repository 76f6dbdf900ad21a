"""How good a model is, on data that it has not seen, and whether a challenger may replace the champion.

Windows overlap and a person moves alike from one to the next, so a random split would measure memory: here whole
devices are held out, or, where there are too few, the end of each activity's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from schemas.activity import SAMPLE_RATE_HZ
from streams.windows import WINDOW, Floats, Ints

HELD_OUT_DEVICES: Final = 0.25
HELD_OUT_TIME: Final = 0.3
MIN_DEVICES: Final = 4
# Draws of held-out devices that are looked at for one that leaves every activity on both sides.
DRAWS: Final = 50
WINDOW_S: Final = WINDOW / SAMPLE_RATE_HZ
GATE_LEVEL: Final = 0.9  # of the interval whose lower end is asked: one time in twenty no gain looks like one
# Event times jitter and round; windows that only touch are a whole sample (0.02 s) apart from sharing one.
ROUNDING_S: Final = 0.5 / SAMPLE_RATE_HZ
# Macro F1 moves in steps of about a thousandth; this only keeps 0.83 - 0.81 from missing a margin of 0.02.
ROUNDING: Final = 1e-9

Mask = NDArray[np.bool_]
Reason = Literal[
    "first-model", "better-on-recent", "not-better", "forgets-anchor", "class-floor", "uncertain", "no-held-out-data"
]
# Windows of one bout that count as one observation, 30 s: in a bout a model is mostly right or mostly wrong.
BLOCK: Final = 24


def confusion(y_true: Ints, y_pred: Ints, classes: int) -> Ints:
    """(classes, classes) counts of windows; row: the label, column: what the model said. Codes are 0 … classes - 1."""
    counts: Ints = np.bincount(y_true * classes + y_pred, minlength=classes * classes).reshape(classes, classes)
    return counts


def macro_f1(y_true: Ints, y_pred: Ints) -> float:
    """Mean F1 over the classes that y_true holds, each counting alike; a class that is only predicted costs precision.

    Raises ValueError if there is nothing to score.
    """
    if not len(y_true):
        raise ValueError("no windows to score")
    scores = []
    for label in np.unique(y_true):
        hits = np.count_nonzero((y_true == label) & (y_pred == label))
        scores.append(2 * hits / (np.count_nonzero(y_true == label) + np.count_nonzero(y_pred == label)))
    return float(np.mean(scores))


@dataclass(frozen=True, slots=True)
class Split:
    """Which of n windows to learn from and which to score on, (n,) each; windows between the two are in neither."""

    train: Mask
    held_out: Mask
    by: Literal["device", "time"]


def split(labels: Ints, devices: NDArray[np.str_] | Ints, starts: Floats, seed: int) -> Split:
    """About a quarter of the devices held out, or, with fewer than four, the last 30 % of each activity's time.

    labels, devices, starts: (n,), starts in seconds of event time. The same seed gives the same split. Devices are
    drawn so that every activity is on both sides; if no draw does that, time splits.
    """
    names = np.unique(devices)
    if len(names) >= MIN_DEVICES:
        rng = np.random.default_rng(seed)
        count = max(1, round(HELD_OUT_DEVICES * len(names)))
        activities = set(labels.tolist())
        for _ in range(DRAWS):
            held_out = np.isin(devices, rng.choice(names, count, replace=False))
            if set(labels[held_out].tolist()) == set(labels[~held_out].tolist()) == activities:
                return Split(~held_out, held_out, "device")
    return _split_by_time(labels, devices, starts)


def _split_by_time(labels: Ints, devices: NDArray[np.str_] | Ints, starts: Floats) -> Split:
    train = np.zeros(len(labels), np.bool_)
    held_out = np.zeros(len(labels), np.bool_)
    for device in np.unique(devices):
        for label in np.unique(labels[devices == device]):
            rows = np.flatnonzero((devices == device) & (labels == label))
            rows = rows[np.argsort(starts[rows], kind="stable")]
            first = len(rows) - round(HELD_OUT_TIME * len(rows))
            held_out[rows[first:]] = True
            # A window that shares readings with the first one held out is left out of both sides.
            limit = starts[rows[first]] - WINDOW_S + ROUNDING_S if first < len(rows) else np.inf
            train[rows[:first]] = starts[rows[:first]] <= limit
    return Split(train, held_out, "time")


def halves(labels: Ints, devices: NDArray[np.str_] | Ints, starts: Floats, blocks: Ints, rows: Mask) -> list[Split]:
    """Two splits that between them hold each window of `rows` out once: by device, or every other block of an activity.

    labels, devices, starts, blocks, rows: (n,). What is not held out is learned from, but for windows that share
    readings.
    """
    names = np.unique(devices[rows])
    by_device = len(names) > 1 and not set(names.tolist()) & set(devices[~rows].tolist())
    second = np.zeros(len(labels), np.bool_)
    if by_device:
        second = np.isin(devices, names[1::2])
    else:
        for label in np.unique(labels[rows]):
            mine = rows & (labels == label)
            numbers, first = np.unique(blocks[mine], return_index=True)
            order = numbers[np.argsort(starts[mine][first], kind="stable")]
            second |= mine & np.isin(blocks, order[1::2])
    found = []
    for half in (rows & ~second, rows & second):
        near = half.copy()
        for device in np.unique(devices[half]):
            own = np.sort(starts[half & (devices == device)])
            at = np.searchsorted(own, starts)
            before, after = own[(at - 1).clip(0)], own[at.clip(max=len(own) - 1)]
            gap = np.minimum(np.abs(starts - before), np.abs(starts - after))
            near |= (devices == device) & (gap < WINDOW_S - ROUNDING_S)
        found.append(Split(~near, half, "device" if by_device else "time"))
    return [part for part in found if part.held_out.any()]


@dataclass(frozen=True, slots=True)
class Scores:
    """Macro F1 on held-out windows: recent, on the drifted data; anchor, on data from before. None: no such windows."""

    recent: float | None
    anchor: float | None


def class_f1(y_true: Ints, y_pred: Ints) -> dict[int, float]:
    """F1 of each class that y_true holds, by code."""
    return {
        int(label): float(
            2
            * np.count_nonzero((y_true == label) & (y_pred == label))
            / (np.count_nonzero(y_true == label) + np.count_nonzero(y_pred == label))
        )
        for label in np.unique(y_true)
    }


def blocks_of(bouts: Ints) -> Ints:
    """(n,) number of each window's block: up to BLOCK windows of one bout. bouts: (n,), windows of a bout in order."""
    block = np.empty(len(bouts), np.int64)
    count = 0
    for bout in np.unique(bouts):
        rows = np.flatnonzero(bouts == bout)
        block[rows] = count + np.arange(len(rows)) // BLOCK
        count += -(-len(rows) // BLOCK)
    return block


def paired_interval(
    labels: Ints, blocks: Ints, challenger: Ints, champion: Ints, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the gain in macro F1, both models asked the same (n,) windows, so what both find hard cancels.

    Blocks within activities are what varies: a stratified jackknife (Wolter, Introduction to Variance Estimation, 4.5)
    and Student's t with as many degrees of freedom as there are blocks beyond one of each activity; an activity of one
    block is taken to vary as the others do. Where all have one block, that tells nothing; then it is the gain give or
    take what exchanging the two models' answers block by block would make of it in nine of ten exchanges (Fisher's
    randomization test), which of fewer than five blocks is sure of nothing. A bootstrap would call every fifth of no
    gains sure where an activity has one to three blocks. Raises ValueError if there is nothing to compare.
    """
    if not len(labels):
        raise ValueError("no windows to compare on")
    classes = int(max(labels.max(), challenger.max(), champion.max())) + 1
    numbers, index = np.unique(blocks, return_inverse=True)
    first = np.zeros(len(numbers), np.int64)
    first[index] = labels  # a block is of one bout, so of one activity
    tables = np.zeros((2, len(numbers), classes, classes))
    for table, answers in zip(tables, (challenger, champion), strict=True):
        np.add.at(table, (index, labels, answers), 1)

    def gain(counts: Floats) -> Floats:
        hits, true, said = counts.diagonal(axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
        with np.errstate(invalid="ignore"):
            f1 = np.nanmean(np.where(true > 0, 2 * hits / (true + said), np.nan), -1)
        return np.asarray(f1[0] - f1[1])

    whole = tables.sum(1)
    middle = float(gain(whole))
    of_a_block, single = [], 0  # variance that an activity's blocks have each
    variance, degrees = 0.0, 0
    for label in np.unique(first):
        mine = np.flatnonzero(first == label)
        count = len(mine)
        if count == 1:
            single += 1
            continue
        own = tables[:, mine].sum(1)
        without = (whole - own)[:, None] + count / (count - 1) * (own[:, None] - tables[:, mine])
        spread = (count - 1) / count * float(((gain(without) - middle) ** 2).sum())
        of_a_block.append(spread * count)
        variance += spread
        degrees += count - 1
    if not degrees:
        exchanged = np.array(list(product((0.0, 1.0), repeat=len(numbers))))
        of_one = np.tensordot(exchanged, tables[1] - tables[0], 1) + whole[0]
        half = float(np.quantile(np.abs(gain(np.stack([of_one, whole.sum(0) - of_one]))), 0.9, method="higher"))
        return middle - half, middle + half
    variance += single * float(np.mean(of_a_block))
    half = float(student.ppf((1 + level) / 2, degrees)) * variance**0.5
    return middle - half, middle + half


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to promote, and why, in words that a decision event carries."""

    outcome: Literal["promoted", "held", "rejected"]
    reason: Reason
    detail: str

    @property
    def promote(self) -> bool:
        """Whether the challenger replaces the champion."""
        return self.outcome == "promoted"


def judge(
    challenger: Scores,
    champion: Scores | None,
    margin: float,
    anchor_loss: float,
    *,
    interval: tuple[float, float] | None = None,
    lost: tuple[str, float] | None = None,
    class_loss: float = 1.0,
) -> Verdict:
    """Whether the challenger replaces the champion, both scored on the same held-out windows.

    It does if it gains at least `margin` macro F1 on the recent windows, surely (interval of that gain above zero), and
    loses at most `anchor_loss` on the anchor and `class_loss` F1 of any activity there. lost: the activity that loses
    most and how much. With a gain that is not sure it is held, for more windows to tell. The first model needs no such
    proof. Without recent windows nothing shows that it is better, so the champion stays.
    """
    if champion is None:
        return Verdict("promoted", "first-model", "there is no champion yet")
    if challenger.recent is None or champion.recent is None:
        return _rejected("no-held-out-data", "no recent windows were held out to compare on")
    gain = challenger.recent - champion.recent
    compared = f"recent macro F1 {champion.recent:.3f} → {challenger.recent:.3f}"
    if interval is not None:
        compared += f" (gain {gain:+.3f}, {100 * GATE_LEVEL:.0f} % {interval[0]:+.3f} to {interval[1]:+.3f})"
    if gain < margin - ROUNDING:
        return _rejected("not-better", f"{compared}: a gain of {gain:+.3f}, needed {margin:+.3f}")
    if challenger.anchor is None or champion.anchor is None:
        compared += "; no anchor windows to compare on"
    else:
        loss = champion.anchor - challenger.anchor
        compared += f", anchor {champion.anchor:.3f} → {challenger.anchor:.3f}"
        if loss > anchor_loss + ROUNDING:
            return _rejected("forgets-anchor", f"{compared}: a loss of {loss:.3f}, allowed {anchor_loss:.3f}")
        if lost is not None and lost[1] > class_loss + ROUNDING:
            detail = f"{compared}: F1 of {lost[0]} falls by {lost[1]:.3f}, allowed {class_loss:.3f}"
            return _rejected("class-floor", detail)
    sure = interval is None or interval[0] > 0
    return (
        Verdict("promoted", "better-on-recent", compared)
        if sure
        else Verdict("held", "uncertain", f"{compared}: the interval holds zero")
    )


def _rejected(reason: Reason, detail: str) -> Verdict:
    return Verdict("rejected", reason, detail)
