"""One retraining, in a process of its own: `python -m workers.retrain_job FOLDER`.

The folder holds `task.json`; the job leaves `result.json` there, and `phase` says what it is doing meanwhile. It can be
killed at any moment: a run that was left open is closed by the next attempt, a version that was made is found again.
Exit codes: 0 with a result, RETRY_EXIT if the world was not ready, anything else is a failed job.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import structlog

from deploy.modelfiles import PROFILE
from schemas.activity import ACTIVITIES
from schemas.errors import Reject, Retry, UserError
from schemas.events import CandidateScore, ChampionScore, ModelRegistered, TrainingWindow, event_id
from schemas.settings import Settings, load_settings
from streams.features import FEATURES, features
from streams.kafka import backoff
from streams.replay import WindowExpired
from workers.dataset import (
    Piece,
    anchor_sample,
    anchors,
    collect,
    devices_of,
    enough,
    past,
    piece_of,
    ranges_behind,
    wanted_by,
)
from workers.logs import configure_logging
from workers.retrain_task import PHASE, RESULT, RETRY_EXIT, TASK, Champion, Decline, Declined, Result, Task, ToProve

if TYPE_CHECKING:
    from workers.trial import Model

log = structlog.get_logger()


def run(task: Task, settings: Settings, folder: Path) -> Result:
    """Collect, train, compare, register. Raises Retry if Kafka or MLflow are not there."""
    from workers import registry

    client = registry.connect(settings)
    if task.proof is not None:
        return _prove(task.proof, settings, client, folder)
    known = _registered_before(task, settings, client)
    if known is not None:
        return Result(known, _promoted_before(client, known))
    if (said := registry.judged_before(client, settings.model, task.event_id, task.attempt)) is not None:
        log.info("training.judged-before", decision=said)
        return Result(declined=msgspec.json.decode(said, type=Declined))
    try:
        return _train(task, settings, _pinned(task, settings, client, folder), client, folder)
    except Decline as decline:
        return Result(declined=decline.declined)
    except WindowExpired as expired:
        return Result(declined=Declined("not-trained", "window-expired", str(expired)))


def _prove(proof: ToProve, settings: Settings, client: Any, folder: Path) -> Result:
    """Whether the deployed version does better than the one before it on what has come since. Raises Retry."""
    from workers.trial import predicted
    from workers.verdict import Proof, prove

    _say(folder, f"proving version {proof.new.version}")
    nothing = Proof("no-effect", "no-labels", "no labelled windows came; nothing shows that it helped")
    try:
        behind = ranges_behind(proof.window, settings)
        found = enough(settings, behind, devices_of(proof.window), settings.verdict_windows)
        if (found.window.windows or 0) < settings.verdict_windows and not proof.final:
            return Result(not_yet=True)
        piece = piece_of(found, settings, activities=1)
    except (WindowExpired, Decline) as error:
        if not proof.final:
            return Result(not_yet=True)
        log.info("verdict.no-readings", detail=str(error))
        return Result(declined=Declined(nothing.outcome, nothing.reason, nothing.detail))
    try:
        new, previous = (
            predicted(model.pipeline, features(piece.values, model.columns))
            for model in (
                _champion(each, client, settings, folder / each.version) for each in (proof.new, proof.previous)
            )
        )
    except Decline as decline:
        return Result(declined=decline.declined)
    said = prove(piece.labels, piece.bouts, new, previous, margin=settings.promote_margin, again=proof.again)
    if not said.sure and not proof.final:
        return Result(not_yet=True)
    return Result(declined=Declined(said.outcome, said.reason, said.detail, said.numbers))


@dataclass(frozen=True, slots=True)
class _Pinned:
    """The windows of a training. seed: all that is drawn at random is drawn with it. past: of before the drift."""

    window: TrainingWindow
    recent: Piece
    anchor: list[Piece]
    seed: int
    past: Piece | None = None


def _pinned(task: Task, settings: Settings, client: Any, folder: Path) -> _Pinned:
    """Collected from Kafka, or, for a repetition, the very bytes of the run that is repeated.

    Raises Decline, WindowExpired, Retry.
    """
    if task.repeat is not None:
        return _repeated(task.repeat, client)
    found = collect(wanted_by(task, settings), settings, lambda text: _say(folder, text), task.until)
    # Hashed once more: an id that somebody else has given need not be hexadecimal.
    seed = (int(event_id("seed", task.event_id)[:8], 16) + settings.training_seed) % 2**31
    before = past(found.window, task.previous, settings) if task.drifts else None
    return _Pinned(found.window, piece_of(found, settings), _anchor(task, settings, client), seed, before)


def _repeated(run_id: str, client: Any) -> _Pinned:
    from workers import registry, snapshot

    try:
        window = msgspec.convert(json.loads(registry.artifact(client, run_id, "window.json"))["recent"], TrainingWindow)
        [recent] = snapshot.decode(registry.artifact(client, run_id, f"windows/{snapshot.RECENT}"))
        anchor = snapshot.decode(registry.artifact(client, run_id, f"windows/{snapshot.ANCHOR}"))
        return _Pinned(window, recent, anchor, int(registry.param(client, run_id, "seed")))
    except Reject as reject:
        raise Decline("not-trained", "no-snapshot", f"run {run_id} cannot be repeated: {reject}") from reject


def _anchor(task: Task, settings: Settings, client: Any) -> list[Piece]:
    """What the champion has learned from: kept with it, or, for one of before that was done, still on the topic."""
    from workers import registry, snapshot

    if task.champion is None:
        return []
    kept = []
    if task.champion.run_id:
        try:
            for name in (snapshot.ANCHOR, snapshot.RECENT):
                kept += snapshot.decode(registry.artifact(client, task.champion.run_id, f"windows/{name}"))
        except Reject as reject:
            log.warning("anchor.not-kept", version=task.champion.version, detail=str(reject))
            kept = []
    found = kept or [piece_of(replayed, settings) for replayed in anchors(task.previous, settings)]
    return anchor_sample(found, settings.anchor_windows, settings.training_seed)


def _promoted_before(client: Any, known: ModelRegistered) -> Declined | None:
    """What the gate said when a version was registered before a crash."""
    from workers import registry

    content = registry.tag(client, known.run_id, registry.DECISION_TAG)
    return msgspec.json.decode(content, type=Declined) if content else None


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


def _train(task: Task, settings: Settings, pinned: _Pinned, client: Any, folder: Path) -> Result:
    # scikit-learn is imported only now: collecting may take long and needs no memory for it
    from workers import registry, snapshot
    from workers.figures import confusion_figure, feature_figure
    from workers.trial import labelled, run_trial

    champion = None if task.champion is None else _champion(task.champion, client, settings, folder)
    trial = run_trial(
        pinned.recent,
        pinned.anchor,
        champion,
        settings,
        seed=pinned.seed,
        past=pinned.past,
        drifts=task.drifts,
        forced=task.forced,
        say=lambda phase: _say(folder, phase),
        warn=lambda name, error: log.warning("candidate.failed", name=name, error=error),
    )
    best, verdict, scores = trial.best, trial.verdict, trial.scores
    log.info("training.judged", winner=best.name, outcome=verdict.outcome, reason=verdict.reason, detail=verdict.detail)
    cause, detail = None, verdict.detail
    if trial.triage is not None:
        cause, detail = trial.triage.cause, f"{detail}; the drift: {trial.triage.detail}"
    decision = Declined(verdict.outcome, verdict.reason, detail, trial.numbers, cause)
    figures = {
        "confusion": confusion_figure(trial.confused, ACTIVITIES, f"{best.name}: held-out recent windows"),
    }
    if pinned.anchor:
        before = features(labelled(pinned.anchor).values, trial.names)
        now = features(pinned.recent.values, trial.names)
        figures["features"] = feature_figure(before, now, trial.names, "The features that moved most")
    files = {snapshot.RECENT: snapshot.encode([pinned.recent]), snapshot.ANCHOR: snapshot.encode(pinned.anchor)}
    training = registry.Training(
        task.event_id,
        task.attempt,
        verdict.outcome,
        msgspec.json.encode(decision).decode(),
        params={
            "windows.recent": len(pinned.recent),
            "windows.anchor": sum(map(len, pinned.anchor)),
            "features": len(trial.names),
            "seed": pinned.seed,
            "window.sha256": pinned.window.sha256,
            "window.rows": pinned.window.rows,
            "snapshot.sha256": hashlib.sha256(b"".join(files.values())).hexdigest(),
        },
        tags={
            "data.topic": pinned.window.topic,
            "data.offsets": msgspec.json.encode(pinned.window.ranges).decode(),
            "driftloop.reason": verdict.reason,
        }
        | ({} if task.repeat is None else {"driftloop.repeats": task.repeat}),
        window={"recent": msgspec.to_builtins(pinned.window), "anchor": msgspec.to_builtins(task.previous)},
        tried=[
            registry.Tried(item.name, _params(item.pipeline), _metrics(scores[item.name], item.fit_seconds))
            for item in trial.fitted
        ],
        figures=figures,
        tables={"confusion": {"model": best.name, "activities": list(ACTIVITIES), "rows": trial.confused.tolist()}},
        files=files,
    )
    if not verdict.promote:

        def recorded() -> None:
            if registry.judged_before(client, settings.model, task.event_id, task.attempt) is None:
                registry.close_unfinished(client, settings.model, task.event_id)
                registry.record_rejected(training, settings.model)

        _patiently(folder, recorded)
        return Result(declined=decision)
    profile = _profile([*pinned.anchor, pinned.recent], pinned.seed)
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
            for item in trial.fitted
        ],
        champion=None
        if trial.champion is None or task.champion is None
        else ChampionScore(
            version=task.champion.version,
            recent=_rounded(trial.champion.recent),
            anchor=_rounded(trial.champion.anchor),
        ),
        window=pinned.window,
        digest="",
        caused_by=task.caused_by,
        profile=PROFILE,
    )

    def registered() -> ModelRegistered:
        if (known := _registered_before(task, settings, client)) is not None:
            return known
        winner = registry.Winner(best.pipeline, trial.names, trial.examples, profile)
        return registry.register(client, settings.model, training, winner, draft, registry.signing_key(settings))

    return Result(_patiently(folder, registered), decision)


def _profile(pieces: Sequence[Piece], seed: int) -> bytes:
    """The reference profile of all the training has seen, held-out windows too: they are recordings like the others."""
    from streams.profile import encode
    from workers.reference import make_profile

    offsets = np.cumsum([0, *(int(piece.bouts.max()) + 1 for piece in pieces)])
    return encode(
        make_profile(
            np.concatenate([piece.values for piece in pieces]),
            np.concatenate([piece.labels for piece in pieces]),
            np.concatenate([piece.devices for piece in pieces]),
            np.concatenate([piece.bouts + offsets[i] for i, piece in enumerate(pieces)]),
            seed,
        )
    )


def _champion(champion: Champion, client: Any, settings: Settings, folder: Path) -> Model:
    """The version to beat, loaded. Raises Decline if it cannot be had: nothing then shows that another is better."""
    from deploy.modelfiles import load, smoke_cases
    from workers import registry
    from workers.trial import Model

    try:
        files = registry.trusted_files(client, settings, champion.version, champion.digest, folder / "champion")
        pipeline, columns = load(files), smoke_cases(files).columns
    except Reject as reject:
        detail = f"version {champion.version} serves, but cannot be compared with: {reject}"
        raise Decline("failed", "champion-unusable", detail) from reject
    if unknown := set(columns) - set(FEATURES):
        detail = f"version {champion.version} wants features that are not made here: {', '.join(sorted(unknown)[:5])}"
        raise Decline("failed", "champion-unusable", detail)
    return Model(champion.version, pipeline, columns)


def _params(pipeline: Any) -> dict[str, Any]:
    return {name: value for name, value in pipeline.steps[-1][1].get_params().items() if value is not None}


def _metrics(scores: Any, seconds: float) -> dict[str, float]:
    found = {"f1.recent": scores.recent, "f1.anchor": scores.anchor, "fit.seconds": seconds}
    return {name: float(value) for name, value in found.items() if value is not None}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _say(folder: Path, phase: str) -> None:
    with suppress(OSError):  # a full disk is no reason to lose a training, and told where a result is lost
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
        (folder / RESULT).write_bytes(msgspec.json.encode(run(task, settings, folder)))
    except (Retry, UserError) as error:
        log.warning("training.retry", error=str(error))
        _say(folder, str(error))
        return RETRY_EXIT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("training.retry", error=str(error))
        return RETRY_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
