"""The detectors' ADWINs outside our data: river's synthetic streams with known change points, and annotated series.

Synthetic: the error of river's Gaussian naive Bayes under an abrupt change of concept, watched as `confirmed` watches a
model's errors. Annotated: people marked where a series changes (several of them, not of one mind); each column,
standardised by its first tenth, is watched as `confirmed` watches a residual. A hit is an alarm within a tenth of the
series after a mark; every other alarm is false.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
from river import naive_bayes
from river.datasets import synth
from river.drift import ADWIN
from river.drift import datasets as annotated

from tests.bench.report import Measurement, parser, show

LENGTH = 10_000
AT = 5_000
SERIES = ("AirlinePassengers", "Apple", "Bitcoin", "BrentSpotPrice", "Occupancy", "RunLog", "UKCoalEmploy")


def concepts(seed):
    """Pairs of concepts by name."""
    return {
        "SEA 0 to 2": (synth.SEA(variant=0, seed=seed), synth.SEA(variant=2, seed=seed)),
        "Sine 0 to 1": (synth.Sine(0, seed=seed), synth.Sine(1, seed=seed)),
        "STAGGER 0 to 2": (synth.STAGGER(0, seed=seed), synth.STAGGER(2, seed=seed)),
        "Agrawal 0 to 4": (synth.Agrawal(0, seed=seed), synth.Agrawal(4, seed=seed)),
        "no change": (synth.Sine(0, seed=seed), synth.Sine(0, seed=seed + 100)),
    }


def watched(stream):
    """Indices at which the ADWIN on the error of a classifier that learns all the time has fired."""
    model, adwin, alarms = naive_bayes.GaussianNB(), ADWIN(0.002, clock=2, grace_period=16), []
    for index, (x, y) in enumerate(stream):
        numbers = {name: float(value) for name, value in x.items()}
        adwin.update(float(model.predict_one(numbers) != y))
        if adwin.drift_detected:
            alarms.append(index)
            model = naive_bayes.GaussianNB()
        model.learn_one(numbers, y)
    return alarms


def synthetic(seeds):
    rows = []
    for name in concepts(0):
        alarms = []
        for seed in range(seeds):
            one, other = concepts(seed)[name]
            alarms.append(watched(chain(one.take(AT), other.take(LENGTH - AT))))
        late = [min((at for at in found if at >= AT), default=None) for found in alarms]
        hits = [at - AT for at in late if at is not None] if name != "no change" else []
        false = sum(sum(at < AT or name == "no change" for at in found) for found in alarms)
        rows.append(
            {
                "series": name,
                "runs": seeds,
                "marks": 0 if name == "no change" else 1,
                "found": len(hits) / seeds,
                "median_delay": float(np.median(hits)) if hits else None,
                "false_alarms": false / seeds,
            }
        )
    return rows


def columns(series):
    """(n, k) numbers of an annotated series."""
    found = []
    for x, y in series:
        values = list(x.values()) if isinstance(x, dict) else [x]
        values = [*values, *(y.values() if isinstance(y, dict) else [y])]
        found.append(
            [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        )
    return np.array(found)


def marked(name):
    series = getattr(annotated, name)()
    values = columns(series)
    marks = sorted({int(at) for points in series.annotations.values() for at in points})
    first = values[: max(10, len(values) // 10)]
    scaled = (values - first.mean(0)) / np.maximum(first.std(0), 1e-9)
    alarms = []
    for column in scaled.T:
        adwin = ADWIN(0.05, clock=2, grace_period=16)
        for at, value in enumerate(np.clip(column, -5, 5).tolist()):
            adwin.update(value)
            if adwin.drift_detected:
                alarms.append(at)
    margin = max(10, len(values) // 10)
    delays = [min((at - mark for at in alarms if 0 <= at - mark <= margin), default=None) for mark in marks]
    hits = [delay for delay in delays if delay is not None]
    false = sum(not any(0 <= at - mark <= margin for mark in marks) for at in alarms)
    return {
        "series": name,
        "runs": len(values),
        "marks": len(marks),
        "found": len(hits) / len(marks) if marks else None,
        "median_delay": float(np.median(hits)) if hits else None,
        "false_alarms": float(false),
    }


def main() -> None:
    """Measure both."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    given = arguments.parse_args()
    rows = synthetic(given.seeds) + [marked(name) for name in SERIES]
    show(Measurement("changepoints", {"seeds": given.seeds, "length": LENGTH, "change": AT}, rows=rows), given.json)


if __name__ == "__main__":
    main()
