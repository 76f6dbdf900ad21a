"""What retraining is worth: accuracy before, during and after drifts of real people whom no model has seen.

The detector, controller, trainings and gate are those of the workers (`workers/rehearsal.py`); the clock is event time
at one device's pace, and a training takes what it takes here. A run: a person's bouts calibrate (60 %), the others are
played twice undrifted, then all, drifted. `before`: accuracy of the first model on undrifted readings; `during`: on the
drifted readings behind the switch; `after`: of the version that serves then, on the same. Without a switch both are of
all drifted readings. Policies: never, periodic (every 10 minutes), every-alarm (a training for each raw ADWIN alarm;
two are done, the others counted).
"""

import json
import re
import time
from pathlib import Path

import numpy as np

from schemas.settings import Settings
from streams.confirmed import Confirmed
from streams.detectors import DETECTORS
from streams.inject import Drift
from streams.motionsense import parse_subjects, recordings
from streams.replay import Replayed
from streams.windows import NO_LABEL, Readings, cut
from tests.bench.report import Measurement, parser, show
from workers import backtest
from workers.dataset import piece_of
from workers.rehearsal import accuracy, rehearse
from workers.retrain import policy_of
from workers.trial import Model, held_out, predicted, run_trial

KINDS = {
    "rotate 45": Drift("rotate", 45, 0),
    "rotate 90": Drift("rotate", 90, 0),
    "stuck": Drift("stuck", 0, 0),
    "gain 1.5": Drift("gain", 1.5, 0),
    "subject": Drift("subject", 0, 0),
    "noise 0.3": Drift("noise", 0.3, 0),
}
DEPLOY_S = 10.0  # from the gate's verdict to the switch, as `make demo` needs for MLflow and the rollout


def windows_of(recording):
    return cut(Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording))))[0]


def share(values):
    return float(np.mean(values)) if values else float("nan")


def interval(values, seed=0):
    """95 % bootstrap interval of a mean."""
    if not values:
        return [float("nan")] * 2
    rng = np.random.default_rng(seed)
    means = np.array(values)[rng.integers(len(values), size=(4000, len(values)))].mean(1)
    return [round(float(bound), 4) for bound in np.percentile(means, [2.5, 97.5])]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="MotionSense: zip or folder")
    arguments.add_argument("--reference", default="1-12", help="people whom profile and first model learn from")
    arguments.add_argument("--subjects", default="13-18", help="people who are monitored")
    arguments.add_argument("--policy", choices=["driftloop", "never", "periodic", "every-alarm"], default="driftloop")
    arguments.add_argument("--kinds", default=",".join(KINDS), help="drifts, by commas")
    arguments.add_argument("--seed", type=int, default=1, help="the first seed")
    arguments.add_argument(
        "--also", type=Path, action="append", default=[], help="rows of an earlier run's --json, too"
    )
    arguments.add_argument("--seeds", type=int, default=1, help="how many")
    given = arguments.parse_args()
    learned, tested = parse_subjects(given.reference), parse_subjects(given.subjects)
    people = {int(re.sub(r"\D", "", each.device)): each for each in recordings(given.data, {*learned, *tested})}
    settings = Settings(_env_file=None, retrain_policy=given.policy, retrain_period_seconds=600)

    began = time.perf_counter()
    parts = {people[number].device: windows_of(people[number]) for number in learned}
    anchor = [piece_of(Replayed(None, parts), settings)]
    first = run_trial(anchor[0], [], None, settings, seed=given.seed)
    champion = Model("1", first.best.pipeline, first.names)
    table, labels = held_out(anchor, first.names)
    print(f"first model: {first.best.name}, macro F1 {first.scores[first.best.name].recent:.3f}, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip

    if given.policy == "every-alarm":
        kind = DETECTORS["raw"]
    else:
        kind = Confirmed("standard", "model")
        kind.adopt("bench", backtest.reference_profile([people[number] for number in learned], given.seed))
        kind.measure(np.zeros((1, 128, 12)))

    def anchor_accuracy(model):
        return float((predicted(model.pipeline, table) == labels).mean())

    rows = [row for path in given.also for row in json.loads(path.read_text())["rows"]]
    for seed in range(given.seed, given.seed + given.seeds):
        for place, number in enumerate(tested):
            other = people[tested[(place + 1) % len(tested)]]
            for name in given.kinds.split(","):
                run = backtest.run_of(people[number], KINDS[name], seed, other, "dev")
                light = backtest.measured(kind, run)
                begun = time.process_time()
                found = backtest.play(kind, light if kind.measure is not None else run)
                device = people[number].device
                most = 2 if given.policy == "every-alarm" else 10**9
                done = rehearse(
                    run.windows, found, device, champion, anchor, policy_of(settings), settings,
                    deploy_s=DEPLOY_S, most=most,
                )  # fmt: skip
                computing = time.process_time() - begun
                played = float(run.windows.end[-1] - run.windows.start[0])
                normal = run.windows.chosen((run.windows.start >= run.from_ts) & (run.windows.end < run.drift_ts))
                drifted = run.windows.chosen(run.windows.start >= run.drift_ts)
                since, serving = done.deployed[-1]
                behind = drifted.chosen(drifted.start >= since) if since > run.drift_ts else drifted
                if int((behind.labels != NO_LABEL).sum()) < 60:  # too few to say
                    behind = drifted
                of_drift = [each for each in done.trainings if each.begun >= run.drift_ts]
                trained = [each for each in of_drift if each.outcome in ("promoted", "held", "rejected")]
                promoted = next((each for each in of_drift if each.model is not None), None)
                early = [each for each in done.trainings if each.begun < run.drift_ts]
                false = sum(each.outcome in ("promoted", "held", "rejected") for each in early)
                if given.policy == "every-alarm":  # those that were not done, too
                    false = sum(run.from_ts <= ts < run.drift_ts for ts in set(done.detected))
                hit = next((ts for ts in done.detected if ts >= run.drift_ts), None)
                last = next((each for each in reversed(done.decisions) if each[0] >= run.drift_ts), None)
                told = [each for each in of_drift if each.reason]
                rows.append(
                    {
                        "kind": name,
                        "subject": number,
                        "seed": seed,
                        "before": accuracy(champion, normal),
                        "during": accuracy(champion, behind),
                        "after": accuracy(serving, behind),
                        "detected_s": None if hit is None else hit - run.drift_ts,
                        "decided_s": told[0].ended - run.drift_ts if told else None,
                        "registered_s": promoted.ended - run.drift_ts if promoted else None,
                        "deployed_s": promoted.ended + DEPLOY_S - run.drift_ts if promoted else None,
                        "trainings": len(trained),
                        "false_trainings": false,
                        "false_versions": sum(each.model is not None for each in early),
                        "normal_s": run.drift_ts - run.from_ts,
                        "played_s": played,
                        "cpu_s": computing,
                        "train_cpu_s": max((each.seconds for each in trained), default=None),
                        "anchor_lost": anchor_accuracy(champion) - anchor_accuracy(serving),
                        "ended_as": "" if last is None else f"{last[1]}/{last[2]}",
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    hours = sum(row["normal_s"] for row in rows) / 3600
    hurt = [row for row in rows if row["before"] - row["during"] >= 0.05]
    unhurt = [row for row in rows if row["before"] - row["during"] < 0.01]
    regained = [float(row["before"] - row["after"] <= 0.03) for row in hurt]
    switched = [row for row in rows if row["deployed_s"] is not None]
    figures = {
        "false_retrains_per_device_day": sum(row["false_trainings"] for row in rows) / hours * 24,
        "false_versions_per_device_day": sum(row["false_versions"] for row in rows) / hours * 24,
        "normal_hours": hours,
        "drifts_that_cost_5_points": len(hurt),
        "regained_within_3_points": share(regained),
        "regained_ci95": interval(regained),
        "worse_than_drifted_champion": sum(row["after"] < row["during"] - 1e-9 for row in rows),
        "drifts_that_cost_less_than_1_point": len(unhurt),
        "of_these_without_a_new_version": share([float(row["deployed_s"] is None) for row in unhurt]),
        "median_deployed_s": float(np.median([row["deployed_s"] for row in switched])) if switched else None,
        "most_anchor_lost": max(row["anchor_lost"] for row in rows),
        "times_real_time": sum(row["played_s"] for row in rows) / sum(row["cpu_s"] for row in rows),
    }
    for name in given.kinds.split(","):
        mine = [row for row in rows if row["kind"] == name]
        means = [round(share([row[key] for row in mine]), 4) for key in ("before", "during", "after")]
        figures[f"{name}: before, during, after"] = means
    told = {key: str(value) for key, value in vars(given).items() if key not in ("json", "data", "also")}
    show(Measurement("healing", told, figures, rows), given.json)


if __name__ == "__main__":
    main()
