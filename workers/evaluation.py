"""How good a model is, on data that it has not seen, and whether a challenger may replace the champion.

Windows overlap and a person moves alike from one to the next, so a random split would measure memory: here whole
devices are held out, or, where there are too few, the end of each activity's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.activity import SAMPLE_RATE_HZ
from streams.windows import WINDOW, Floats, Ints

HELD_OUT_DEVICES: Final = 0.25
HELD_OUT_TIME: Final = 0.3
MIN_DEVICES: Final = 4
# Draws of held-out devices that are looked at for one that leaves every activity on both sides.
DRAWS: Final = 50
WINDOW_S: Final = WINDOW / SAMPLE_RATE_HZ
# Event times jitter and round; windows that only touch are a whole sample (0.02 s) apart from sharing one.
ROUNDING_S: Final = 0.5 / SAMPLE_RATE_HZ
# Macro F1 moves in steps of about a thousandth; this only keeps 0.83 - 0.81 from missing a margin of 0.02.
ROUNDING: Final = 1e-9

Mask = NDArray[np.bool_]
Reason = Literal["first-model", "better-on-recent", "not-better", "forgets-anchor", "no-held-out-data"]


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


@dataclass(frozen=True, slots=True)
class Scores:
    """Macro F1 on held-out windows: recent, on the drifted data; anchor, on data from before. None: no such windows."""

    recent: float | None
    anchor: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to promote, and why, in words that a decision event carries."""

    promote: bool
    outcome: Literal["promoted", "held"]
    reason: Reason
    detail: str


def judge(challenger: Scores, champion: Scores | None, margin: float, anchor_loss: float) -> Verdict:
    """Whether the challenger replaces the champion, both scored on the same held-out windows.

    It does if it gains at least `margin` macro F1 on the recent windows and loses at most `anchor_loss` on the anchor.
    The first model needs no such proof. Without recent windows nothing shows that it is better, so the champion stays.
    """
    if champion is None:
        return Verdict(True, "promoted", "first-model", "there is no champion yet")
    if challenger.recent is None or champion.recent is None:
        return _held("no-held-out-data", "no recent windows were held out to compare on")
    gain = challenger.recent - champion.recent
    compared = f"recent macro F1 {champion.recent:.3f} → {challenger.recent:.3f}"
    if gain < margin - ROUNDING:
        return _held("not-better", f"{compared}: a gain of {gain:+.3f}, needed {margin:+.3f}")
    if challenger.anchor is None or champion.anchor is None:
        return Verdict(True, "promoted", "better-on-recent", f"{compared}; no anchor windows to compare on")
    loss = champion.anchor - challenger.anchor
    compared += f", anchor {champion.anchor:.3f} → {challenger.anchor:.3f}"
    if loss > anchor_loss + ROUNDING:
        return _held("forgets-anchor", f"{compared}: a loss of {loss:.3f}, allowed {anchor_loss:.3f}")
    return Verdict(True, "promoted", "better-on-recent", compared)


def _held(reason: Reason, detail: str) -> Verdict:
    return Verdict(False, "held", reason, detail)
