"""The reference profile: what a model's training data looked like, as plain numbers that travel with the model.

For each activity the population's centre, how far people lie from it, how far one person's bouts lie apart and how far
a bout's windows do; and, as plain numbers too, the classifier that tells which activity a window shows. JSON, so that
the agent loads it without unpickling anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from schemas.activity import ACTIVITIES, CHANNELS, Activity
from schemas.errors import Reject
from streams.features import FEATURES, features
from streams.measures import COUNT, MEASURED
from streams.windows import Floats, Ints

FORMAT: Final = 1
FILE: Final = "profile.json"
# A bout of fewer windows says nothing about the next one; its first window straddles the change of activity.
COUNTED_WINDOWS: Final = 4
PRIOR_BOUTS: Final = 1.0  # weight of the hand-set spreads of MEASURED against what the training data shows
_NAMES: Final = [f"{item.feature}.{item.kind}" for item in MEASURED]
_SPREAD: Final = np.array([item.spread for item in MEASURED])


class Linear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """softmax(x W + b). names: k features; weights: (k, c); intercept: (c,); activities: c of them."""

    names: list[str]
    weights: list[list[float]]
    intercept: list[float]
    activities: list[Activity]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One activity. mean: (20,) of people; people: (20,) variance of their means about it; between, within: (20, 20)
    covariance of one person's bout means, and of windows in a bout. bouts: how many it was learned from.
    """

    bouts: int
    mean: list[float]
    people: list[float]
    between: list[list[float]]
    within: list[list[float]]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """statistics: names of the columns. channels: those that the training data had; rotationRate may lack, for it
    follows from attitude then, on both sides alike.
    """

    format: int
    statistics: list[str]
    channels: list[str]
    devices: int
    activities: dict[Activity, Reference]
    classifier: Linear | None = None


def decode(blob: bytes) -> Profile:
    """The profile of `encode`. Raises Reject `profile` for anything else, and for another version's."""
    try:
        profile = msgspec.json.decode(blob, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Reject("profile", f"not a reference profile: {error}") from error
    if profile.format != FORMAT or profile.statistics != _NAMES:
        raise Reject(
            "profile", f"a reference profile of format {profile.format} with other statistics than format {FORMAT}"
        )
    lacking = sorted({channel.name for channel in CHANNELS if channel.required} - set(profile.channels))
    if lacking:
        raise Reject("profile", f"learned without {', '.join(lacking)}, which every reading has")
    for name, reference in profile.activities.items():
        shapes = [np.shape(reference.mean), np.shape(reference.people)]
        squares = [np.asarray(reference.between), np.asarray(reference.within)]
        if shapes != [(COUNT,)] * 2 or any(square.shape != (COUNT, COUNT) for square in squares):
            raise Reject("profile", f"{name}: arrays of other sizes than {COUNT} statistics")
        parts = [np.asarray(reference.mean), np.asarray(reference.people), *squares]
        if not all(np.isfinite(part).all() for part in parts):
            raise Reject("profile", f"{name}: a number is not finite")
        if min(reference.people) < 0 or any(np.linalg.eigvalsh(square)[0] <= 0 for square in squares):
            raise Reject("profile", f"{name}: a covariance is not positive definite")
    linear = profile.classifier
    if linear is not None:
        if set(linear.names) - set(FEATURES):
            raise Reject("profile", "the classifier asks for features that this version does not know")
        if np.shape(linear.weights) != (len(linear.names), len(linear.activities)) or np.shape(linear.intercept) != (
            len(linear.activities),
        ):
            raise Reject("profile", "the classifier's arrays do not fit its features and activities")
    return profile


def encode(profile: Profile) -> bytes:
    """The profile as JSON."""
    return msgspec.json.encode(profile)


class Classifier:
    """A profile's linear classifier, ready to use."""

    def __init__(self, linear: Linear) -> None:
        self.names = tuple(linear.names)
        codes = [ACTIVITIES.index(name) for name in linear.activities]
        weights = np.zeros((len(self.names), len(ACTIVITIES)))
        intercept = np.full(len(ACTIVITIES), -700.0)  # an activity that it never saw has no probability
        weights[:, codes] = np.asarray(linear.weights)
        intercept[codes] = linear.intercept
        self.weights, self.intercept = weights, intercept

    def probabilities(self, values: Floats) -> Floats:
        """(n, 6) for completed windows (n, 128, 12), columns as ACTIVITIES."""
        return self.of_features(features(values, self.names))

    def of_features(self, table: Floats) -> Floats:
        """(n, 6) of (n, k) features; einsum, as BLAS rounds a row by how many there are."""
        scores = np.einsum("nk,kc->nc", table, self.weights) + self.intercept
        scores -= scores.max(1, keepdims=True)
        powers = np.exp(scores)
        return np.asarray(powers / powers.sum(1, keepdims=True))


def learn(
    measures: Floats,
    labels: Ints,
    devices: Sequence[str] | np.ndarray,
    bouts: Ints,
    *,
    channels: Sequence[str],
    classifier: Linear | None = None,
) -> Profile:
    """The profile of n training windows: measures (n, ≥20), labels (n,) codes, devices (n,), bouts (n,) in time order.

    All recordings of each person belong in it: with one recording an activity, putting the phone back into the pocket
    would look like drift.
    """
    devices = np.asarray(devices)
    names = sorted(set(devices.tolist()))
    activities: dict[Activity, Reference] = {}
    for code, activity in enumerate(ACTIVITIES):
        means: list[list[Floats]] = []
        scatter, dof = np.zeros((COUNT, COUNT)), 0
        for name in names:
            own = []
            mine = (devices == name) & (labels == code)
            for bout in np.unique(bouts[mine]):
                rows = measures[mine & (bouts == bout), :COUNT]
                if len(rows) >= COUNTED_WINDOWS:
                    own.append(rows[1:].mean(0))
                    scatter += (rows[1:] - own[-1]).T @ (rows[1:] - own[-1])
                    dof += len(rows) - 2
            if own:
                means.append(own)
        if means:
            activities[activity] = _reference(means, scatter, dof)
    return Profile(FORMAT, _NAMES, list(channels), len(names), activities, classifier)


def _reference(means: list[list[Floats]], scatter: Floats, dof: int) -> Reference:
    centres = np.array([np.mean(own, 0) for own in means])
    within = (scatter + PRIOR_BOUTS * np.diag(_SPREAD**2)) / (dof + PRIOR_BOUTS)
    between, free = PRIOR_BOUTS * np.diag(_SPREAD**2), PRIOR_BOUTS
    for own, centre in zip(means, centres, strict=True):
        between += (np.array(own) - centre).T @ (np.array(own) - centre)
        free += len(own) - 1
    between /= free
    bouts = float(np.mean([len(own) for own in means]))
    spread = centres.var(0, ddof=1) if len(centres) > 1 else np.diag(between)
    people = np.maximum(spread - np.diag(between) / bouts, 0.25 * np.diag(between))
    return Reference(
        sum(map(len, means)),
        _rounded(centres.mean(0)).tolist(),
        _rounded(people).tolist(),
        _rounded(between).tolist(),
        _rounded(within).tolist(),
    )


def _rounded(array: Floats) -> Floats:
    """To six digits: a file that a person can look at."""
    return np.array([float(f"{value:.6g}") for value in array.ravel()]).reshape(array.shape)
