"""One retraining on given windows: candidates trained, compared with the champion, judged. No Kafka, no MLflow.

The same windows, champion and seed give the same models and scores; so a repetition of a run proves it, and a backtest
sees what the worker would have done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from schemas.activity import ACTIVITIES
from schemas.events import DriftDetected
from schemas.settings import Settings
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.windows import Floats, Ints
from workers.dataset import Piece, all_have_rotation
from workers.evaluation import (
    GATE_LEVEL,
    Scores,
    Verdict,
    blocks_of,
    class_f1,
    confusion,
    halves,
    judge,
    macro_f1,
    paired_interval,
)
from workers.retrain_task import Decline
from workers.training import Candidate, Fitted, Labelled, Mask, candidates, fit_all, training_set
from workers.triage import Triage, triage

_NO_ANSWER = len(ACTIVITIES)
AS_GOOD = 0.01  # of the sum of two macro F1
WHOLE_ANCHOR = 0.9  # an anchor of fewer of the windows that it may have is all that was learned
Interval = tuple[float, float]
Judged = tuple[Verdict, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Model:
    """A version as it can be asked. columns: the features that it wants."""

    version: str
    pipeline: Any
    columns: Sequence[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it. scores, champion: on the held-out windows that the best was chosen on.

    numbers: the gate's, for a decision, on the other windows. examples: held-out recent rows of `names`.
    """

    names: Sequence[str]
    fitted: Sequence[Fitted]
    scores: dict[str, Scores]
    best: Fitted
    champion: Scores | None
    verdict: Verdict
    triage: Triage | None
    numbers: dict[str, float]
    confused: Ints
    examples: Floats


def labelled(pieces: Sequence[Piece], *, all_windows: bool = False) -> Labelled:
    """The training windows of some pieces, bouts numbered through."""
    offset = np.cumsum([0, *(int(piece.bouts.max(initial=0)) + 1 for piece in pieces)])
    rows = [np.ones(len(piece), np.bool_) if all_windows else piece.train for piece in pieces]
    return Labelled(
        np.concatenate([piece.values[row] for piece, row in zip(pieces, rows, strict=True)]),
        np.concatenate([piece.labels[row] for piece, row in zip(pieces, rows, strict=True)]),
        np.concatenate([piece.bouts[row] + offset[i] for i, (piece, row) in enumerate(zip(pieces, rows, strict=True))]),
    )


def held_out(pieces: Sequence[Piece], names: Sequence[str]) -> tuple[Floats, Ints]:
    """Features and labels of the held-out windows of some pieces."""
    parts = [(features(piece.values[piece.held_out], names), piece.labels[piece.held_out]) for piece in pieces]
    if not parts:
        return np.empty((0, len(names))), np.empty(0, np.int64)
    return np.concatenate([table for table, _ in parts]), np.concatenate([labels for _, labels in parts])


def predicted(pipeline: Any, table: Floats) -> Ints:
    """Activity codes from a pipeline that answers in names; where a feature is missing it has no answer."""
    codes = {name: code for code, name in enumerate(ACTIVITIES)}
    answers, can = np.full(len(table), _NO_ANSWER), np.isfinite(table).all(1)
    if can.any():
        with threadpool_limits(1):  # as in `training.fit`
            answers[can] = [codes[name] for name in pipeline.predict(table[can]).tolist()]
    return answers


def run_trial(
    recent: Piece,
    anchor: Sequence[Piece],
    champion: Model | None,
    settings: Settings,
    *,
    seed: int,
    past: Piece | None = None,
    drifts: Sequence[DriftDetected] = (),
    forced: bool = False,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str, str], None] = lambda _, __: None,
) -> Trial:
    """Train, compare, judge. past: the drifted devices before the drift, which the champion has not learned either.

    Raises Decline where the champion is not hurt (unless forced), where only the mix of activities has changed, and
    where no candidate could be trained.
    """
    begun = time.monotonic()
    names = FEATURES if all_have_rotation([recent, *anchor]) else FEATURES_WITHOUT_ROTATION
    held_recent, held_anchor = held_out([recent], names), held_out(anchor, names)
    champion_scores, cause = None, None
    theirs: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))
    if champion is not None:
        theirs = (
            predicted(champion.pipeline, held_out([recent], champion.columns)[0]),
            predicted(champion.pipeline, held_out(anchor, champion.columns)[0]) if anchor else theirs[1],
        )
        champion_scores = Scores(_f1(held_recent[1], theirs[0]), _f1(held_anchor[1], theirs[1]))
        # Of an anchor that is a sample of more, whoever is not in it may be known all the same.
        whole = sum(map(len, anchor)) < WHOLE_ANCHOR * settings.anchor_windows
        known = sorted({name for piece in anchor for name in piece.devices.tolist()}) if whole else []
        # The champion has learned none of the recent windows, so all of them tell whether it is hurt.
        after = recent.labels, predicted(champion.pipeline, features(recent.values, champion.columns))
        before = held_anchor[1], theirs[1]
        if past is not None:
            before = past.labels, predicted(champion.pipeline, features(past.values, champion.columns))
        cause = triage(drifts, known, before, after, settings.promote_margin)
        if not forced:
            _decline_if_needless(champion, champion_scores, cause, settings)

    say("training")
    drawn = np.random.default_rng(seed).bit_generator.state

    def learn(rows: Mask, untrained: Sequence[Candidate], failed: Callable[[str, Exception], None]) -> list[Fitted]:
        """Candidates, of the anchor and these recent windows; the anchor's copy is turned the same each time."""
        rng = np.random.default_rng()
        rng.bit_generator.state = drawn
        learned = Labelled(recent.values[rows], recent.labels[rows], recent.bouts[rows])
        table, codes, weight = training_set(
            labelled(anchor) if anchor else learned, learned if anchor else None, names, rng
        )
        return fit_all(
            untrained,
            table,
            np.asarray(ACTIVITIES)[codes],
            weight,
            seed=seed,
            failed=failed,
            jobs=settings.train_jobs,
            backend=settings.train_backend,
            scheduler=settings.train_scheduler,
        )

    failures: dict[str, str] = {}
    fitted = learn(recent.train, candidates(seed), lambda name, error: failures.update({name: repr(error)[:300]}))
    for name, error in failures.items():
        warn(name, error)
    if not fitted:
        raise Decline("failed", "training-failed", f"no candidate could be trained: {failures}")

    say("evaluating")
    answers = {
        item.name: (predicted(item.pipeline, held_recent[0]), predicted(item.pipeline, held_anchor[0]))
        for item in fitted
    }
    scores = {
        name: Scores(_f1(held_recent[1], mine), _f1(held_anchor[1], old)) for name, (mine, old) in answers.items()
    }

    def judged(score: Scores, of_champion: Scores | None, name: str, interval: Interval | None) -> Judged:
        return _gate(score, of_champion, held_anchor[1], answers[name][1], theirs[1], interval, settings)

    said = {name: judged(score, champion_scores, name, None) for name, score in scores.items()}
    best = best_of(fitted, scores, {name: verdict.promote for name, (verdict, _) in said.items()})
    verdict, numbers = said[best.name]
    if champion is not None and champion_scores is not None and verdict.promote:
        # Chosen on some windows, proved on the others: the best of five on a few windows is often only the luckiest.
        untrained = [item for item in candidates(seed) if item[0] == best.name]
        rows, ours = _on_others(recent, lambda part: learn(part, untrained, _raise)[0].pipeline, names)
        labels = recent.labels[rows]
        old = predicted(champion.pipeline, features(recent.values[rows], champion.columns))
        interval = paired_interval(labels, blocks_of(recent.bouts[rows]), ours, old, GATE_LEVEL)
        proved = Scores(macro_f1(labels, ours), scores[best.name].anchor)
        verdict, numbers = judged(proved, Scores(macro_f1(labels, old), champion_scores.anchor), best.name, interval)
        numbers |= {"windows.recent": len(labels)}
    numbers |= {"seconds": round(time.monotonic() - begun, 1)}
    if cause is not None:
        numbers |= cause.numbers
    return Trial(
        names,
        fitted,
        scores,
        best,
        champion_scores,
        verdict,
        cause,
        numbers,
        confusion(held_recent[1], answers[best.name][0], len(ACTIVITIES)),
        held_recent[0],
    )


def best_of(fitted: Sequence[Fitted], scores: dict[str, Scores], passed: dict[str, bool]) -> Fitted:
    """Of those that the gate lets through, the first that is as good as the best: less than AS_GOOD tells of no more
    than whom chance has held out. One that forgets must not stand in the way of one that does not.
    """
    able = [item for item in fitted if passed[item.name]] or list(fitted)
    reached = [(scores[item.name].recent or 0) + (scores[item.name].anchor or 0) for item in able]
    return next(item for item, score in zip(able, reached, strict=True) if score >= max(reached) - AS_GOOD)


def _on_others(recent: Piece, learned: Callable[[Mask], Any], names: Sequence[str]) -> tuple[Mask, Ints]:
    """The recent windows that no candidate was chosen on, and what a pipeline that has not seen them says of each.

    learned: the pipeline of the anchor and these recent windows.
    """
    rows, answers = np.zeros(len(recent), np.bool_), np.full(len(recent), _NO_ANSWER)
    for part in halves(recent.labels, recent.devices, recent.starts, blocks_of(recent.bouts), ~recent.held_out):
        answers[part.held_out] = predicted(learned(part.train), features(recent.values[part.held_out], names))
        rows |= part.held_out
    return rows, answers[rows]


def _raise(_: str, error: Exception) -> None:
    raise error


def _gate(
    score: Scores,
    champion: Scores | None,
    labels: Ints,
    ours: Ints,
    theirs: Ints,
    interval: Interval | None,
    settings: Settings,
) -> Judged:
    """What the gate says of a candidate, with its numbers. labels, ours, theirs: of the anchor's held-out windows."""
    numbers = _numbers("challenger", score)
    lost = None
    if champion is not None:
        numbers |= _numbers("champion", champion) | {"windows.anchor": len(labels)}
        if interval is not None:
            numbers |= {"gain.low": round(interval[0], 4), "gain.high": round(interval[1], 4)}
        if len(labels):
            now, then = class_f1(labels, ours), class_f1(labels, theirs)
            worst = max(then, key=lambda code: then[code] - now[code])
            lost = ACTIVITIES[worst], then[worst] - now[worst]
            numbers |= {f"lost.{lost[0]}": round(lost[1], 4)}
    verdict = judge(
        score,
        champion,
        settings.promote_margin,
        settings.anchor_loss,
        interval=interval,
        lost=lost,
        class_loss=settings.class_loss,
    )
    return verdict, numbers


def _f1(labels: Ints, answers: Ints) -> float | None:
    return macro_f1(labels, answers) if len(labels) else None


def _decline_if_needless(champion: Model, scores: Scores, cause: Triage, settings: Settings) -> None:
    """A drift that does not hurt the champion needs no retraining: it is as good on the drifted data as before."""
    numbers = _numbers("champion", scores) | cause.numbers
    if cause.cause == "changed-mix":
        raise Decline("ignored", "changed-mix", cause.detail, cause=cause.cause, **numbers)
    if "recall.before" in cause.numbers and cause.fell < settings.promote_margin:
        before = cause.numbers["recall.before"]
        raise Decline(
            "not-needed",
            "champion-unhurt",
            f"version {champion.version} names {before - cause.fell:.1%} of an activity's drifted windows right, "
            f"{before:.1%} before",
            cause=cause.cause,
            **numbers,
        )


def _numbers(who: str, scores: Scores) -> dict[str, float]:
    found = {f"{who}.recent": scores.recent, f"{who}.anchor": scores.anchor}
    return {name: round(float(value), 4) for name, value in found.items() if value is not None}
