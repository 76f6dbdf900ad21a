"""One retraining, in a process of its own: `python -m workers.retrain_job FOLDER`.

The folder holds `task.json`; the job leaves `result.json` there, and `phase` says what it is doing meanwhile. It can be
killed at any moment: a run that was left open is closed by the next attempt, a version that was made is found again.
Exit codes: 0 with a result, RETRY_EXIT if the world was not ready, anything else is a failed job.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import structlog

from deploy.modelfiles import PROFILE
from schemas.activity import ACTIVITIES
from schemas.errors import Reject, Retry, UserError
from schemas.events import CandidateScore, ChampionScore, ModelRegistered, event_id
from schemas.settings import Settings, load_settings
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.kafka import backoff
from streams.replay import Replayed, WindowExpired
from streams.windows import Floats, Ints
from workers.dataset import Piece, all_have_rotation, anchors, collect, piece_of
from workers.logs import configure_logging
from workers.retrain_task import PHASE, RESULT, RETRY_EXIT, TASK, Champion, Decline, Declined, Result, Task

if TYPE_CHECKING:
    from workers.evaluation import Scores
    from workers.training import Fitted

log = structlog.get_logger()


def run(task: Task, settings: Settings, folder: Path) -> Result:
    """Collect, train, compare, register. Raises Retry if Kafka or MLflow are not there."""
    from workers import registry

    client = registry.connect(settings)
    known = _registered_before(task, settings, client)
    if known is not None:
        return Result(registered=known)
    try:
        recent = collect(task.drift, task.previous, settings, lambda text: _say(folder, text))
        return _train(task, settings, recent, client, folder)
    except Decline as decline:
        return Result(declined=decline.declined)
    except WindowExpired as expired:
        return Result(declined=Declined("not-trained", "window-expired", str(expired)))


def _registered_before(task: Task, settings: Settings, client: Any) -> ModelRegistered | None:
    """What an earlier attempt at this task has registered; its open runs are closed if it got less far."""
    from workers import registry

    known = registry.registered_for(client, settings.model, task.event_id)
    if known is None:
        registry.close_unfinished(client, settings.model, task.event_id)
    else:
        log.info("training.known", version=known.version)
    return known


_Answer = TypeVar("_Answer")


def _patiently(folder: Path, record: Callable[[], _Answer]) -> _Answer:
    """What `record` returns, once MLflow is there: a training is not done again because its record has to wait."""
    for wait in backoff(1, 20):
        _say(folder, "registering")
        try:
            return record()
        except Retry as error:
            log.warning("registering.retry", wait_s=round(wait, 1), error=str(error))
            _say(folder, f"waiting: {error}")
            time.sleep(wait)
    raise AssertionError("backoff ends never")


def _train(task: Task, settings: Settings, recent: Replayed, client: Any, folder: Path) -> Result:
    # scikit-learn is imported only now: collecting may take long and needs no memory for it
    from workers import registry
    from workers.evaluation import Scores, confusion, judge, macro_f1
    from workers.figures import confusion_figure, feature_figure
    from workers.training import Labelled, candidates, fit_all, training_set

    _say(folder, "training")
    begun = time.monotonic()
    # Hashed once more: an id that somebody else has given need not be hexadecimal.
    seed = (int(event_id("seed", task.event_id)[:8], 16) + settings.training_seed) % 2**31
    now = piece_of(recent, settings)
    before = [piece_of(replayed, settings) for replayed in anchors(task.previous, settings)]
    names = FEATURES if all_have_rotation([now, *before]) else FEATURES_WITHOUT_ROTATION
    held_recent = features(now.values[now.held_out], names), now.labels[now.held_out]
    held_anchor = _stacked(
        [(features(piece.values[piece.held_out], names), piece.labels[piece.held_out]) for piece in before]
    )

    champion = None
    if task.champion is not None:
        champion = _champion_scores(task.champion, client, settings, now, before, folder)
        _decline_if_unhurt(champion, task.champion, settings)

    def labelled(pieces: Sequence[Piece]) -> Labelled:
        offset = np.cumsum([0, *(int(piece.bouts.max()) + 1 for piece in pieces)])
        return Labelled(
            np.concatenate([piece.values[piece.train] for piece in pieces]),
            np.concatenate([piece.labels[piece.train] for piece in pieces]),
            np.concatenate([piece.bouts[piece.train] + offset[i] for i, piece in enumerate(pieces)]),
        )

    rng = np.random.default_rng(seed)
    if before:
        table, codes, weight = training_set(labelled(before), labelled([now]), names, rng)
    else:
        table, codes, weight = training_set(labelled([now]), None, names, rng)
    failures: dict[str, str] = {}
    fitted = fit_all(
        candidates(seed),
        table,
        np.asarray(ACTIVITIES)[codes],
        weight,
        seed=seed,
        failed=lambda name, error: failures.update({name: repr(error)[:300]}),
    )
    for name, error in failures.items():
        log.warning("candidate.failed", name=name, error=error)
    if not fitted:
        raise Decline("failed", "training-failed", f"no candidate could be trained: {failures}")

    def score(pipeline: Any) -> Scores:
        recent_f1 = macro_f1(held_recent[1], _predicted(pipeline, held_recent[0]))
        anchor_f1 = macro_f1(held_anchor[1], _predicted(pipeline, held_anchor[0])) if len(held_anchor[1]) else None
        return Scores(recent_f1, anchor_f1)

    scores = {item.name: score(item.pipeline) for item in fitted}
    best = max(fitted, key=lambda item: (scores[item.name].recent or 0) + (scores[item.name].anchor or 0))
    verdict = judge(scores[best.name], champion, settings.promote_margin, settings.anchor_loss)
    log.info("training.judged", winner=best.name, outcome=verdict.outcome, reason=verdict.reason, detail=verdict.detail)

    reference = labelled(before) if before else None
    figures = {
        "confusion": confusion_figure(
            confused := confusion(held_recent[1], _predicted(best.pipeline, held_recent[0]), len(ACTIVITIES)),
            ACTIVITIES,
            f"{best.name}: held-out recent windows",
        )
    }
    if reference is not None:
        figures["features"] = feature_figure(
            features(reference.values, names), features(now.values, names), names, "The features that moved most"
        )
    training = registry.Training(
        task.event_id,
        params={
            "windows.recent": len(now.labels),
            "windows.anchor": sum(len(piece.labels) for piece in before),
            "features": len(names),
            "seed": seed,
            "window.sha256": recent.window.sha256,
            "window.rows": recent.window.rows,
        },
        tags={
            "data.topic": recent.window.topic,
            "data.offsets": msgspec.json.encode(recent.window.ranges).decode(),
            "driftloop.outcome": verdict.outcome,
            "driftloop.reason": verdict.reason,
        },
        window={"recent": msgspec.to_builtins(recent.window), "anchor": msgspec.to_builtins(task.previous)},
        tried=[
            registry.Tried(item.name, _params(item.pipeline), _metrics(scores[item.name], item.fit_seconds))
            for item in fitted
        ],
        figures=figures,
        tables={"confusion": {"model": best.name, "activities": list(ACTIVITIES), "rows": confused.tolist()}},
    )
    if not verdict.promote:
        _patiently(folder, lambda: registry.record_rejected(training, settings.model))
        numbers = {"seconds": round(time.monotonic() - begun, 1)} | _numbers("challenger", scores[best.name])
        numbers |= {} if champion is None else _numbers("champion", champion)
        raise Decline("rejected", verdict.reason, verdict.detail, **numbers)
    profile = _profile([*before, now], fitted, names)
    draft = ModelRegistered(
        model=settings.model,
        version="0",
        run_id="",
        winner=best.name,
        candidates=[
            CandidateScore(
                name=item.name,
                recent=_rounded(scores[item.name].recent),
                anchor=_rounded(scores[item.name].anchor),
                fit_seconds=round(item.fit_seconds, 2),
            )
            for item in fitted
        ],
        champion=None
        if champion is None or task.champion is None
        else ChampionScore(
            version=task.champion.version, recent=_rounded(champion.recent), anchor=_rounded(champion.anchor)
        ),
        window=recent.window,
        digest="",
        caused_by=[] if task.drift is None else [task.event_id],
        profile=None if profile is None else PROFILE,
    )

    def registered() -> ModelRegistered:
        if (known := _registered_before(task, settings, client)) is not None:
            return known
        winner = registry.Winner(best.pipeline, names, held_recent[0], profile)
        return registry.register(client, settings.model, training, winner, draft, registry.signing_key(settings))

    return Result(registered=_patiently(folder, registered))


def _profile(pieces: Sequence[Piece], fitted: Sequence[Fitted], names: Sequence[str]) -> bytes | None:
    """The reference profile of all the training has seen, held-out windows too: they are recordings like the others.

    None if the linear candidate could not be trained.
    """
    from streams.profile import encode
    from workers.reference import linear_of, make_profile

    linear = next((item.pipeline for item in fitted if item.name == "logistic-regression"), None)
    if linear is None:
        return None
    offsets = np.cumsum([0, *(int(piece.bouts.max()) + 1 for piece in pieces)])
    return encode(
        make_profile(
            np.concatenate([piece.values for piece in pieces]),
            np.concatenate([piece.labels for piece in pieces]),
            np.concatenate([piece.devices for piece in pieces]),
            np.concatenate([piece.bouts + offsets[i] for i, piece in enumerate(pieces)]),
            linear_of(linear, names),
        )
    )


def _stacked(parts: Sequence[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    if not parts:
        return np.empty((0, 0)), np.empty(0, np.int64)
    return np.concatenate([table for table, _ in parts]), np.concatenate([labels for _, labels in parts])


def _predicted(pipeline: Any, table: Floats) -> Ints:
    """Activity codes from a pipeline that answers in names."""
    codes = {name: code for code, name in enumerate(ACTIVITIES)}
    return np.array([codes[name] for name in pipeline.predict(table).tolist()], np.int64)


def _champion_scores(
    champion: Champion, client: Any, settings: Settings, now: Piece, before: Sequence[Piece], folder: Path
) -> Scores:
    """The champion on the very windows that the challengers are scored on, by the features that it wants.

    Raises Decline if it cannot be had: nothing then shows that another model is better.
    """
    from deploy.modelfiles import load, smoke_cases
    from workers import registry
    from workers.evaluation import Scores, macro_f1

    try:
        files = registry.trusted_files(client, settings, champion.version, champion.digest, folder / "champion")
        pipeline, columns = load(files), smoke_cases(files).columns
    except Reject as reject:
        detail = f"version {champion.version} serves, but cannot be compared with: {reject}"
        raise Decline("failed", "champion-unusable", detail) from reject
    if unknown := set(columns) - set(FEATURES):
        detail = f"version {champion.version} wants features that are not made here: {', '.join(sorted(unknown)[:5])}"
        raise Decline("failed", "champion-unusable", detail)

    def f1(pieces: Sequence[Piece]) -> float | None:
        table, labels = _stacked(
            [(features(piece.values[piece.held_out], columns), piece.labels[piece.held_out]) for piece in pieces]
        )
        if not len(labels):
            return None
        # Where it lacks rotationRate, it cannot answer, which is as bad as a wrong answer.
        answers, can = np.full(len(labels), len(ACTIVITIES)), np.isfinite(table).all(1)
        if can.any():
            answers[can] = _predicted(pipeline, table[can])
        return macro_f1(labels, answers)

    return Scores(f1([now]), f1(before))


def _decline_if_unhurt(scores: Scores, champion: Champion, settings: Settings) -> None:
    """A drift that does not hurt the champion needs no retraining: it is as good on the drifted data as before."""
    if scores.recent is None or scores.anchor is None:
        return
    if scores.recent >= scores.anchor - settings.promote_margin:
        raise Decline(
            "not-needed",
            "champion-unhurt",
            f"version {champion.version} scores {scores.recent:.3f} on drifted windows, {scores.anchor:.3f} before",
            **_numbers("champion", scores),
        )


def _params(pipeline: Any) -> dict[str, Any]:
    return {name: value for name, value in pipeline.steps[-1][1].get_params().items() if value is not None}


def _metrics(scores: Any, seconds: float) -> dict[str, float]:
    found = {"f1.recent": scores.recent, "f1.anchor": scores.anchor, "fit.seconds": seconds}
    return {name: float(value) for name, value in found.items() if value is not None}


def _numbers(who: str, scores: Any) -> dict[str, float]:
    found = {f"{who}.recent": scores.recent, f"{who}.anchor": scores.anchor}
    return {name: round(float(value), 4) for name, value in found.items() if value is not None}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _say(folder: Path, phase: str) -> None:
    (folder / PHASE).write_text(phase)


def _end_with_parent(folder: Path) -> None:
    """End when the worker that started us is gone: it holds the other end of stdin."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread that ends late would hold
            pass
        rmtree(folder, ignore_errors=True)  # nobody else will
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(folder: Path) -> int:
    """Run the folder's task; the exit code."""
    _end_with_parent(folder)
    settings = load_settings()
    configure_logging(settings)
    structlog.contextvars.bind_contextvars(process="retrain-job")
    task = msgspec.json.decode((folder / TASK).read_bytes(), type=Task)
    try:
        result = run(task, settings, folder)
    except (Retry, UserError) as error:
        log.warning("training.retry", error=str(error))
        _say(folder, str(error))
        return RETRY_EXIT
    (folder / RESULT).write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
