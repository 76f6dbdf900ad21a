"""The candidates of a retraining, and the data they learn from: the anchor, copies of it, the recent windows.

The anchor is what earlier models learned from, the recent windows are what drifted. Learning from recent windows alone
forgets every activity they lack; both together, with the recent ones at a small weight, heals what can be healed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from schemas.activity import ACCELERATION, ATTITUDE, GRAVITY, ROTATION, SAMPLE_RATE_HZ
from schemas.errors import Retry, UserError
from streams.features import features
from streams.inject import rotation
from streams.windows import MAX_GAP_S, WINDOW, Floats, Ints

RECENT_SHARE: Final = 0.1
MAX_TURN_DEGREES: Final = 100.0

Candidate = tuple[str, Pipeline]
Mask = NDArray[np.bool_]
Labels = Ints | NDArray[np.str_]


def candidates(seed: int) -> list[Candidate]:
    """Name and unfitted pipeline of each candidate, scaling inside; the same seed gives the same models.

    Of several that are as good the first is taken: the smaller and quicker come first, and last naive Bayes, which is
    the worst on people unseen.
    """
    classifiers = {
        "logistic-regression": LogisticRegression(C=0.03, max_iter=300),
        # No early stopping: it would hold windows out at random, and neighbouring windows share half their readings.
        "hist-gradient-boosting": HistGradientBoostingClassifier(
            learning_rate=0.2,
            max_iter=40,
            max_leaf_nodes=15,
            max_bins=63,
            max_features=0.3,
            early_stopping=False,
            random_state=seed,
        ),
        # As good as a random forest on people unseen, where not better, in a third of the time; and it forgets least.
        "extra-trees": ExtraTreesClassifier(50, min_samples_leaf=5, max_features=0.3, random_state=seed),
        "k-nearest-neighbours": KNeighborsClassifier(15),
        "gaussian-naive-bayes": GaussianNB(var_smoothing=0.3),
    }
    return [
        (name, Pipeline([("scale", StandardScaler()), ("classify", classifier)]))
        for name, classifier in classifiers.items()
    ]


def bouts_of(labels: Ints, devices: NDArray[np.str_] | Ints, starts: Floats) -> Ints:
    """(n,) number of the bout of each window: a run of adjoining windows of one activity on one device.

    labels, devices, starts: (n,) in any order; starts in seconds of event time.
    """
    order = np.lexsort((starts, devices))
    new = np.ones(len(order), np.bool_)
    new[1:] = (
        (devices[order][1:] != devices[order][:-1])
        | (labels[order][1:] != labels[order][:-1])
        | (np.diff(starts[order]) > WINDOW / SAMPLE_RATE_HZ + MAX_GAP_S)
    )
    bouts = np.empty(len(order), np.int64)
    bouts[order] = np.cumsum(new) - 1
    return bouts


def rotated_copy(
    values: Floats, bouts: Ints, rng: np.random.Generator, max_degrees: float = MAX_TURN_DEGREES
) -> Floats:
    """Windows (n, 128, 12) as if the sensor had been turned in the pocket, each bout about a random axis.

    Gravity, userAcceleration and rotationRate turn together by 0 to max_degrees, roll and pitch follow from gravity;
    yaw stays, as its reference is not in the readings. A model that has seen such a copy loses 2 points of accuracy
    when a phone is turned by 90°, one that has not loses 13.
    """
    names, bout = np.unique(bouts, return_inverse=True)
    angles = np.radians(rng.uniform(0, max_degrees, len(names)))
    turn = np.array([rotation(rng.standard_normal(3), angle) for angle in angles]).reshape(-1, 3, 3)[bout]
    turned = values.copy()
    for vector in (GRAVITY, ROTATION, ACCELERATION):
        turned[..., vector] = values[..., vector] @ turn.transpose(0, 2, 1)
    gravity_x, gravity_y, gravity_z = np.moveaxis(turned[..., GRAVITY], -1, 0)
    turned[..., ATTITUDE.start] = np.arctan2(gravity_x, -gravity_z)
    turned[..., ATTITUDE.start + 1] = np.arctan2(-gravity_y, np.hypot(gravity_x, gravity_z))
    return turned


def stuck_copy(values: Floats, bouts: Ints, rng: np.random.Generator) -> Floats:
    """Windows (n, 128, 12) as if one axis of the accelerometer, another in each bout, had stuck where the bout begins.

    A sensor's fault is never trained on, so a model has to bear it: on people unseen, with an axis stuck, logistic
    regression is .90 right if it has learned from such a copy and .80 if not.
    """
    _, first, bout = np.unique(bouts, return_index=True, return_inverse=True)
    channels = ACCELERATION.start + rng.integers(3, size=len(first))
    stuck = values.copy()
    rows = np.arange(len(values))
    stuck[rows, :, channels[bout]] = values[first[bout], 0, channels[bout]][:, None]
    return stuck


Copy = Callable[[Floats, Ints, np.random.Generator], Floats]
# All bouts stuck as well would cost what is learned of sensors that are not.
COPIES: Final[Sequence[tuple[Copy, float]]] = ((rotated_copy, 1.0), (stuck_copy, 0.6))


def weights(labels: Ints, is_recent: Mask, share: float = RECENT_SHARE) -> Floats:
    """(n,) weights that give the recent windows `share` of their class's weight, where the class has older ones too.

    A class weighs as many as its windows, so classes are not balanced and a window weighs 1 on average. More weight
    for recent windows hurts the classes that are not among them; none at all heals little.
    """
    weight = np.ones(len(labels))
    for label in np.unique(labels):
        recent, older = (labels == label) & is_recent, (labels == label) & ~is_recent
        if recent.any() and older.any():
            total = recent.sum() + older.sum()
            weight[recent] = share * total / recent.sum()
            weight[older] = (1 - share) * total / older.sum()
    return weight


@dataclass(frozen=True, slots=True)
class Labelled:
    """n labelled windows of any number of devices.

    values: (n, 128, 12) float64, columns as in `schemas.activity.CHANNEL_NAMES`. labels: (n,) codes of activities.
    bouts: (n,) as from `bouts_of`.
    """

    values: Floats
    labels: Ints
    bouts: Ints


def training_set(
    anchor: Labelled,
    recent: Labelled | None,
    names: Sequence[str],
    rng: np.random.Generator,
    share: float = RECENT_SHARE,
    copies: Sequence[tuple[Copy, float]] = COPIES,
) -> tuple[Floats, Ints, Floats]:
    """Features (n, len(names)), labels (n,) and weights (n,): anchor, its copies, and the recent windows.

    copies: each with the share of the bouts that it is made of. The recent windows have none: they show how the sensor
    sits now.
    """
    parts, labels = [anchor.values], [anchor.labels]
    for copy, of_bouts in copies:
        numbers = np.unique(anchor.bouts)
        chosen = numbers if of_bouts == 1 else rng.choice(numbers, round(of_bouts * len(numbers)), replace=False)
        rows = np.isin(anchor.bouts, chosen)
        parts.append(copy(anchor.values[rows], anchor.bouts[rows], rng))
        labels.append(anchor.labels[rows])
    older = sum(map(len, labels))
    if recent is not None:
        parts.append(recent.values)
        labels.append(recent.labels)
    table = np.concatenate([features(part, names) for part in parts])
    code = np.concatenate(labels)
    is_recent = np.arange(len(code)) >= older
    return table, code, weights(code, is_recent, share)


def fit(pipeline: Pipeline, table: Floats, labels: Labels, weight: Floats, seed: int) -> Pipeline:
    """The pipeline, fitted in place to features (n, k), labels (n,), codes or names, and weights (n,).

    k nearest neighbours has no weights of its own, so it learns from n rows drawn with replacement by weight. The
    libraries beneath have one thread: several wait for one another in loops, and a fit that takes a second took 50 on a
    machine that was busy otherwise.
    """
    classifier = pipeline.steps[-1][1]
    with threadpool_limits(1):
        if isinstance(classifier, KNeighborsClassifier):
            rows = np.random.default_rng(seed).choice(len(labels), len(labels), p=weight / weight.sum())
            return pipeline.fit(table[rows], labels[rows])
        return pipeline.fit(table, labels, classify__sample_weight=weight)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate that has learned. fit_seconds: how long it took."""

    name: str
    pipeline: Pipeline
    fit_seconds: float


def fit_all(
    untrained: Sequence[Candidate],
    table: Floats,
    labels: Labels,
    weight: Floats,
    *,
    seed: int,
    failed: Callable[[str, Exception], None],
    clock: Callable[[], float] = perf_counter,
    jobs: int = 1,
    backend: str = "threading",
    scheduler: str | None = None,
) -> list[Fitted]:
    """The candidates that could be fitted, in the order given; `failed` is told of each other one and its error.

    jobs: how many at a time. backend: joblib's; with `dask`, on the cluster whose scheduler is named. Raises Retry if
    that does not answer. However they are spread, the models are the same.
    """
    if jobs == 1 and backend != "dask":
        found = [_fitted(name, pipeline, table, labels, weight, seed, clock) for name, pipeline in untrained]
    else:
        with _spread(backend, jobs, scheduler):
            found = joblib.Parallel()(
                joblib.delayed(_fitted)(name, pipeline, table, labels, weight, seed, clock)
                for name, pipeline in untrained
            )
    fitted = []
    for (name, _), item in zip(untrained, found, strict=True):
        if isinstance(item, Fitted):
            fitted.append(item)
        else:
            failed(name, item)
    return fitted


def _fitted(
    name: str,
    pipeline: Pipeline,
    table: Floats,
    labels: Labels,
    weight: Floats,
    seed: int,
    clock: Callable[[], float],
) -> Fitted | Exception:
    begin = clock()
    try:
        made = fit(pipeline, table, labels, weight, seed)
    except Exception as error:  # noqa: BLE001  whatever a library raises, the other candidates can still win
        return error
    return Fitted(name, made, clock() - begin)


@contextmanager
def _spread(backend: str, jobs: int, scheduler: str | None) -> Iterator[None]:
    """joblib's backend in force. Raises Retry, UserError."""
    if backend != "dask":
        with joblib.parallel_config(backend=backend, n_jobs=jobs):
            yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "DRIFTLOOP_TRAIN_BACKEND=dask needs the package distributed: pip install distributed, here and there"
        ) from None
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise Retry(f"the Dask scheduler {scheduler} does not answer: {error}") from error
    with client, joblib.parallel_config(backend="dask", client=client, n_jobs=-1):
        yield
