"""What retraining is worth: accuracy before, during and after drifts of real people whom no model has seen.

The detector, controller, trainings and gate are those of the workers (`workers/rehearsal.py`); the clock is event time
at one device's pace, and a training takes what it takes here. A run: a person's bouts calibrate (60 %), the others are
played twice undrifted, then all, drifted. `during`: accuracy of the first model on the drifted readings behind the last
switch; `after`: of the version that serves then, on the same; `before`: of the first model on the same bouts, had they
not drifted (where another person takes over: on the normal bouts). Without a switch all are of all that drifted.

Policies, several by commas over the same runs: driftloop; never; periodic (every 10 minutes); every-alarm (a training
for each raw ADWIN alarm; two are done, the others counted). `outcome` says what became of a drift: of those that cost
at least 5 points, how many were regained, and why the others were not.
"""

import json
import re
import time
from collections import Counter
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
from workers.evaluation import macro_f1
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
POLICIES = ("driftloop", "never", "periodic", "every-alarm")
HURT, REGAINED = 0.05, 0.03  # of accuracy: what a drift costs at least, how near to before is as good
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


def outcome_of(row, done, since):
    """What became of a drift, in a word or two."""
    if row["before"] - row["after"] <= REGAINED:
        return "regained" if row["before"] - row["during"] > REGAINED else "hardly hurt"
    if row["deployed_s"] is not None:
        return "promoted, not enough"
    ends = [f"{outcome}/{reason}" for ts, outcome, reason, _ in done.decisions if ts >= since]
    if any(end.endswith("/quality") for end in ends):
        return "sensor fault, not trained on"
    if row["detected_s"] is None:
        return "not detected"
    return next((end for end in reversed(ends) if not end.startswith("deferred")), "no time left")


def row_of(run, calm, done, champion, policy):
    """What a run under a policy came to. calm: the windows had nothing drifted."""
    drifted = run.windows.chosen(run.windows.start >= run.drift_ts)
    # The last one of which enough windows tell; one that has learned from what it is asked would look too good.
    serving, behind = champion, drifted
    for since, version in done.deployed:
        later = drifted.chosen(drifted.start >= since)
        if since > run.drift_ts and int((later.labels != NO_LABEL).sum()) >= 60:
            serving, behind = version, later
    same = (calm.start >= behind.start[0] - 0.01) & (calm.end <= behind.end[-1] + 0.01)
    if run.kind == "subject":  # what is asked of another person cannot be asked of this one
        same = (calm.start >= run.from_ts) & (calm.end < run.drift_ts)
    of_drift = [each for each in done.trainings if each.begun >= run.drift_ts]
    trained = [each for each in of_drift if each.outcome in ("promoted", "held", "rejected")]
    promoted = next((each for each in of_drift if each.model is not None), None)
    early = [each for each in done.trainings if each.begun < run.drift_ts]
    false = sum(each.outcome in ("promoted", "held", "rejected") for each in early)
    if policy == "every-alarm":  # those that were not done, too
        false = sum(bool(run.from_ts <= ts < run.drift_ts) for ts in set(done.detected))
    hit = next((ts for ts in done.detected if ts >= run.drift_ts), None)
    told = next((each for each in of_drift if each.reason), None)
    row = {
        "before": accuracy(champion, calm.chosen(same)),
        "during": accuracy(champion, behind),
        "after": accuracy(serving, behind),
        "detected_s": None if hit is None else hit - run.drift_ts,
        "decided_s": None if told is None else told.ended - run.drift_ts,
        "registered_s": promoted.ended - run.drift_ts if promoted else None,
        "deployed_s": promoted.ended + DEPLOY_S - run.drift_ts if promoted else None,
        "trainings": len(trained),
        "false_trainings": false,
        "false_versions": sum(each.model is not None for each in early),
        "normal_s": run.drift_ts - run.from_ts,
        "played_s": float(run.windows.end[-1] - run.windows.start[0]),
        "train_cpu_s": max((each.seconds for each in trained), default=None),
    }
    return row | {"outcome": outcome_of(row, done, run.drift_ts)}


def figures_of(rows):
    """The figures of a policy's runs."""
    hours = sum(row["normal_s"] for row in rows) / 3600
    hurt = [row for row in rows if row["before"] - row["during"] >= HURT]
    learnable = [row for row in hurt if row["kind"] != "stuck"]
    unhurt = [row for row in rows if row["before"] - row["during"] < 0.01]
    switched = [row["deployed_s"] for row in rows if row["deployed_s"] is not None]
    regained, of_learnable = (
        [float(row["before"] - row["after"] <= REGAINED) for row in some] for some in (hurt, learnable)
    )
    figures = {
        "false_retrains_per_device_day": sum(row["false_trainings"] for row in rows) / hours * 24,
        "false_versions_per_device_day": sum(row["false_versions"] for row in rows) / hours * 24,
        "normal_hours": hours,
        "drifts_that_cost_5_points": len(hurt),
        "regained_within_3_points": share(regained),
        "regained_ci95": interval(regained),
        "of_those_that_may_be_learned": len(learnable),
        "learnable_regained": share(of_learnable),
        "learnable_regained_ci95": interval(of_learnable),
        "points_won_back": share([100 * (row["after"] - row["during"]) for row in learnable]),
        "points_lost": share([100 * (row["before"] - row["during"]) for row in learnable]),
        "worse_than_drifted_champion": sum(row["after"] < row["during"] - 1e-9 for row in rows),
        "worst_loss": min(row["after"] - row["during"] for row in rows),
        "drifts_that_cost_less_than_1_point": len(unhurt),
        "of_these_without_a_new_version": share([float(row["deployed_s"] is None) for row in unhurt]),
        "median_deployed_s": float(np.median(switched)) if switched else None,
        "trainings": sum(row["trainings"] for row in rows),
        "most_anchor_f1_lost": max(row["anchor_f1_lost"] for row in rows),
        "most_anchor_accuracy_lost": max(row["anchor_lost"] for row in rows),
        "times_real_time": sum(row["played_s"] for row in rows) / sum(row["cpu_s"] for row in rows),
    }
    for outcome, count in Counter(row["outcome"] for row in hurt).most_common():
        figures[f"of those that cost 5 points, {outcome}"] = count
    for name in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == name]
        means = [round(share([row[key] for row in mine]), 4) for key in ("before", "during", "after")]
        figures[f"{name}: before, during, after"] = means
    return figures


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="MotionSense: zip or folder")
    arguments.add_argument("--reference", default="1-12", help="people whom profile and first model learn from")
    arguments.add_argument("--subjects", default="13-18", help="people who are monitored")
    arguments.add_argument("--policy", default="driftloop", help=f"by commas, of {', '.join(POLICIES)}")
    arguments.add_argument("--kinds", default=",".join(KINDS), help="drifts, by commas")
    arguments.add_argument("--seed", type=int, default=1, help="the first seed")
    arguments.add_argument(
        "--also", type=Path, action="append", default=[], help="rows of an earlier run's --json, too"
    )
    arguments.add_argument("--seeds", type=int, default=1, help="how many")
    given = arguments.parse_args()
    learned, tested = parse_subjects(given.reference), parse_subjects(given.subjects)
    people = {int(re.sub(r"\D", "", each.device)): each for each in recordings(given.data, {*learned, *tested})}
    policies = given.policy.split(",")
    if unknown := set(policies) - set(POLICIES):
        arguments.error(f"--policy: {', '.join(sorted(unknown))} is none of {', '.join(POLICIES)}")
    settings = Settings(_env_file=None, retrain_period_seconds=600)

    began = time.perf_counter()
    parts = {people[number].device: windows_of(people[number]) for number in learned}
    anchor = [piece_of(Replayed(None, parts), settings)]
    first = run_trial(anchor[0], [], None, settings, seed=given.seed)
    champion = Model("1", first.best.pipeline, first.names)
    table, labels = held_out(anchor, first.names)
    print(f"first model: {first.best.name}, macro F1 {first.scores[first.best.name].recent:.3f}, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip

    confirmed = Confirmed("standard", "model")
    confirmed.adopt("bench", backtest.reference_profile([people[number] for number in learned], given.seed))
    confirmed.measure(np.zeros((1, 128, 12)))

    def of_anchor(model):
        answers = predicted(model.pipeline, table)
        return macro_f1(labels, answers), float((answers == labels).mean())

    known = of_anchor(champion)

    rows = [row for path in given.also for row in json.loads(path.read_text())["rows"]]
    for seed in range(given.seed, given.seed + given.seeds):
        for place, number in enumerate(tested):
            other = people[tested[(place + 1) % len(tested)]]
            for name in given.kinds.split(","):
                run = backtest.run_of(people[number], KINDS[name], seed, other, "dev")
                calm = backtest.run_of(people[number], KINDS[name], seed, other, "dev", undrifted=True).windows
                for policy in policies:
                    kind = DETECTORS["raw"] if policy == "every-alarm" else confirmed
                    begun = time.process_time()
                    found = backtest.play(kind, run if kind.measure is None else backtest.measured(kind, run))
                    chosen = settings.model_copy(update={"retrain_policy": policy})
                    done = rehearse(
                        run.windows, found, people[number].device, champion, anchor, policy_of(chosen), chosen,
                        deploy_s=DEPLOY_S, most=2 if policy == "every-alarm" else 10**9,
                    )  # fmt: skip
                    told = {"policy": policy, "kind": name, "subject": number, "seed": seed}
                    row = told | row_of(run, calm, done, champion, policy) | {"cpu_s": time.process_time() - begun}
                    kept = of_anchor(done.deployed[-1][1])
                    row |= {"anchor_f1_lost": known[0] - kept[0], "anchor_lost": known[1] - kept[1]}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    figures = {}
    for policy in dict.fromkeys(row["policy"] for row in rows):
        found = figures_of([row for row in rows if row["policy"] == policy])
        figures |= found if policies == [policy] else {f"{policy}: {key}": value for key, value in found.items()}
    told = {key: str(value) for key, value in vars(given).items() if key not in ("json", "data", "also")}
    show(Measurement("healing", told, figures, rows), given.json)


if __name__ == "__main__":
    main()
