"""The reference profile of a training: the population's statistics, and a linear classifier as plain numbers.

The classifier is a logistic regression of its own, whoever wins the training: linear, so that the agent needs nothing
unpickled to know what a person does, and on features that do not depend on how the phone is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.activity import ACTIVITIES, CHANNEL_NAMES, ROTATION, Activity
from streams.features import FEATURES_WITHOUT_AXES
from streams.measures import completed, measure
from streams.profile import Linear, Profile, learn
from streams.windows import Floats, Ints
from workers.training import Labelled, candidates, fit, rotated_copy, training_set


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


def conditioning_classifier(values: Floats, labels: Ints, bouts: Ints, seed: int) -> Linear | None:
    """What tells the detectors the activity; windows as completed, the rest as for `make_profile`. None for one label.

    It looks at nothing that depends on how the phone is held. On people never seen it is right more often for that (.94
    instead of .91, the worst of twelve .90 instead of .69), and a turned phone does not mislead it.
    """
    if len(np.unique(labels)) < 2:
        return None
    windows = Labelled(values, labels, bouts)
    table, codes, weight = training_set(
        windows, None, FEATURES_WITHOUT_AXES, np.random.default_rng(seed), copies=[(rotated_copy, 1.0)]
    )
    pipeline = fit(dict(candidates(seed))["logistic-regression"], table, np.asarray(ACTIVITIES)[codes], weight, seed)
    return linear_of(pipeline, FEATURES_WITHOUT_AXES)


def make_profile(values: Floats, labels: Ints, devices: NDArray[np.str_], bouts: Ints, seed: int) -> Profile:
    """The profile of training windows (n, 128, 12), labels (n,), devices (n,), bouts (n,) in time order within a bout.

    channels: those that every window has; without rotationRate, attitude gives it (`streams.measures.completed`).
    """
    has_rotation = not np.isnan(values[:, :, ROTATION]).any()
    channels = [name for name in CHANNEL_NAMES if has_rotation or not name.startswith("rotationRate.")]
    whole = completed(values)
    measures = np.concatenate([measure(whole[begin : begin + 512]) for begin in range(0, len(whole), 512)])
    classifier = conditioning_classifier(whole, labels, bouts, seed)
    return learn(measures, labels, devices, bouts, channels=channels, classifier=classifier)
