"""The reference profile of a training: the population's statistics, and a linear classifier as plain numbers.

The classifier is the logistic regression that is a candidate of every training, whoever wins: linear, and on people
never seen as good as the others, so that the agent needs nothing unpickled to know what a person does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.activity import CHANNEL_NAMES, ROTATION, Activity
from streams.measures import completed, measure
from streams.profile import Linear, Profile, learn
from streams.windows import Floats, Ints


def linear_of(pipeline: Any, names: Sequence[str]) -> Linear:
    """A fitted StandardScaler and LogisticRegression folded into one matrix: softmax(x W + b).

    W = (coef/scale)ᵀ, b = intercept - coef·(mean/scale); equal to scikit-learn's answers to 4e-15.
    """
    scale, classify = pipeline.steps[0][1], pipeline.steps[-1][1]
    coef, intercept = classify.coef_, classify.intercept_
    if len(intercept) == 1:  # two activities: scikit-learn keeps one score, the other's is its negative
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weights = (coef / scale.scale_).T
    activities: list[Activity] = [str(name) for name in classify.classes_]  # type: ignore[misc]  # as they were trained
    return Linear(list(names), weights.tolist(), (intercept - coef @ (scale.mean_ / scale.scale_)).tolist(), activities)


def make_profile(
    values: Floats, labels: Ints, devices: NDArray[np.str_], bouts: Ints, classifier: Linear | None
) -> Profile:
    """The profile of training windows (n, 128, 12), labels (n,), devices (n,), bouts (n,) in time order within a bout.

    channels: those that every window has; without rotationRate, attitude gives it (`streams.measures.completed`).
    """
    has_rotation = not np.isnan(values[:, :, ROTATION]).any()
    channels = [name for name in CHANNEL_NAMES if has_rotation or not name.startswith("rotationRate.")]
    parts = [measure(completed(values[begin : begin + 512])) for begin in range(0, len(values), 512)]
    return learn(np.concatenate(parts), labels, devices, bouts, channels=channels, classifier=classifier)
