"""False alarms on undrifted people, and what is found of known drifts, on people whom nothing has seen (strict).

Settings are chosen on the reference people alone, never on the tested ones. `--full` adds true labels instead of the
classifier, readings without rotationRate, and the curve over the threshold factor. `stuck` counts as found when
`QualityDegraded` says so. The protocol: workers/backtest.py.

`--alone` measures what has no second activity to confirm it: people who only walk, jog or sit all along. There an alarm
takes the ADWIN on the model's confidence and one long bout. A person has 4 to 6 minutes of an activity, so they are
played again: calibration, normal and drift hold the same readings, which flatters the false alarms.
"""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.activity import ACTIVITIES, SAMPLE_RATE_HZ
from streams.confirmation import POLICIES
from streams.confirmed import CALIBRATION_S, Confirmed
from streams.detectors import DETECTORS
from streams.inject import AXES, apply
from streams.motionsense import parse_subjects, recordings
from streams.windows import HOP, Readings, cut
from tests.bench.report import Measurement, parser, show
from workers.backtest import (
    DRIFTS,
    START_TS,
    Figures,
    Run,
    accuracy,
    bouts,
    figures,
    judge_run,
    label_of,
    measured,
    play,
    reference_profile,
    runs,
)


def alone(person, drift, activity, seed) -> Run:
    """A person who does one thing, three times: calibration, normal, drift."""
    rng = np.random.default_rng([seed, *person.person.id.encode()])
    mine = [bout for bout in bouts(person, rng) if person.labels[bout[0]] == ACTIVITIES.index(activity)]
    rows = np.concatenate([np.arange(*bout) for bout in mine])
    rows = np.tile(rows, 1 + int(CALIBRATION_S * SAMPLE_RATE_HZ) // len(rows))
    whole = np.tile(rows, 3)
    played = replace(person.chosen(whole), ts=START_TS + np.arange(len(whole)) / SAMPLE_RATE_HZ)
    at = 2 * len(rows) / SAMPLE_RATE_HZ
    axis = AXES[int(rng.integers(3))] if drift.kind == "bias" else None
    played = apply(played, replace(drift, at_seconds=at, axis=axis), rng, None)
    readings = Readings(played.ts, played.values, played.labels, np.arange(len(played)))
    begun = START_TS + len(rows) / SAMPLE_RATE_HZ
    return Run(
        person.person.id, f"{label_of(drift)}, only {activity}", begun, START_TS + at, readings, cut(readings)[0]
    )


def table(kind, whole, name, rows) -> Figures:
    """Play all runs; append the rows, and print them as they come."""
    began = time.process_time()
    found = figures([judge_run(play(kind, run), run, CALIBRATION_S) for run in whole])
    seconds = time.process_time() - began
    low, high = found.ci95
    print(
        f"{name}: {found.false_alarms_per_hour:.3f} false alarms/h [{low:.2f}-{high:.2f}] "
        f"({found.false_alarms} in {found.normal_hours:.1f} h), {found.false_faults} false faults, "
        f"detector {seconds / max(1, sum(len(run.windows) or len(run.readings) // HOP for run in whole)) * 1e6:.0f} "
        "µs a window"
    )
    rows += [{"variant": name, **row} for row in found.rows]
    return found


def main() -> None:
    """Measure one mode; with --full its variants."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="MotionSense: zip or folder")
    arguments.add_argument("--reference", default="1-12", help="people whom profile and classifier learn from")
    arguments.add_argument("--subjects", default="13-18", help="people who are monitored")
    arguments.add_argument("--mode", choices=list(DETECTORS), default="confirmed")
    arguments.add_argument("--protocol", choices=["strict", "dev"], default="strict")
    arguments.add_argument("--policy", choices=list(POLICIES), default="standard")
    arguments.add_argument("--activity", choices=["model", "label"], default="model")
    arguments.add_argument("--seed", type=int, default=1, help="the first seed")
    arguments.add_argument("--seeds", type=int, default=3, help="how many")
    arguments.add_argument("--no-rotation-rate", action="store_true")
    arguments.add_argument("--full", action="store_true", help="the variants, too")
    arguments.add_argument("--alone", action="store_true", help="only people who do one thing all along")
    given = arguments.parse_args()
    learned, tested = parse_subjects(given.reference), parse_subjects(given.subjects)
    if given.protocol == "dev":
        learned = sorted({*learned, *tested})
    people = {int(re.sub(r"\D", "", each.device)): each for each in recordings(given.data, {*learned, *tested})}
    profile = reference_profile([people[number] for number in learned], given.seed)
    seeds = range(given.seed, given.seed + given.seeds)

    def kind_of(policy=given.policy, activity=given.activity):
        if given.mode != "confirmed":
            return DETECTORS[given.mode]
        kind = Confirmed(policy, activity)
        kind.adopt("bench", profile)
        kind.measure(np.zeros((1, 128, 12)))
        return kind

    kind = kind_of()

    def measured_runs(rotation_rate: bool):
        monitored = [people[number] for number in tested]
        return [measured(kind, run) for run in runs(monitored, seeds, given.protocol, rotation_rate=rotation_rate)]

    rows = []
    if given.alone:
        drifts = [each for each in DRIFTS if label_of(each) in ("rotate 45", "rotate 90", "bias 0.3", "noise 0.1")]
        whole = [
            measured(kind, alone(people[number], drift, activity, seed))
            for seed in seeds
            for number in tested
            for activity in ("wlk", "jog", "sit")
            for drift in drifts
        ]
    else:
        whole = measured_runs(not given.no_rotation_rate)
    main_figures = table(kind, whole, f"{given.mode}, {given.activity}", rows)
    known = {
        "false_alarms_per_hour": main_figures.false_alarms_per_hour,
        "false_alarms_ci95": [round(bound, 4) for bound in main_figures.ci95],
        "normal_hours": main_figures.normal_hours,
    }
    if given.mode == "confirmed" and not given.alone:
        right = accuracy(whole)
        known |= {"classifier_accuracy": float(np.mean(list(right.values()))), "classifier_worst": min(right.values())}
        if given.full:
            table(kind_of(activity="label"), whole, "true labels", rows)
            for factor in (0.8, 0.9, 1.1, 1.25, 1.4):
                table(kind_of(policy=POLICIES[given.policy].scaled(factor)), whole, f"thresholds × {factor}", rows)
            del whole
            table(kind, measured_runs(False), "without rotationRate", rows)
    settings = {key: str(value) for key, value in vars(given).items() if key not in ("json", "data")}
    show(Measurement("detection", settings, known, rows), given.json)


if __name__ == "__main__":
    main()
