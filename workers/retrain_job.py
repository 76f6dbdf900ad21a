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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from schemas.activity import ACTIVITIES, ROTATION
from schemas.errors import Retry, UserError
from schemas.events import (
    CandidateScore,
    ChampionScore,
    DriftDetected,
    ModelRegistered,
    OffsetRange,
    TrainingWindow,
)
from schemas.settings import Settings, load_settings
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.replay import Replayed, WindowExpired, end_ranges, replay
from streams.windows import NO_LABEL, Floats, Ints
from workers.logs import configure_logging

log = structlog.get_logger()

RETRY_EXIT: Final = 75  # EX_TEMPFAIL
TASK, RESULT, PHASE = "task.json", "result.json", "phase"
_POLL_S: Final = 1.5


class Champion(msgspec.Struct):
    """The version to beat."""

    version: str
    digest: str


class Task(msgspec.Struct):
    """What to train. drift: the event that asks for it, null for the first model; previous: windows that earlier
    versions learned from, oldest first, which are the anchor now.
    """

    event_id: str
    drift: DriftDetected | None = None
    champion: Champion | None = None
    previous: list[TrainingWindow] = []


class Declined(msgspec.Struct):
    """Why nothing was registered."""

    outcome: str
    reason: str
    detail: str
    numbers: dict[str, float] = {}


class Result(msgspec.Struct):
    """What came of a task: exactly one of the two."""

    registered: ModelRegistered | None = None
    declined: Declined | None = None


class _Decline(Exception):
    def __init__(self, outcome: str, reason: str, detail: str, **numbers: float) -> None:
        super().__init__(detail)
        self.declined = Declined(outcome, reason, detail, numbers)


@dataclass(frozen=True, slots=True)
class Piece:
    """Labelled windows of one training window, split once and for all: the same seed splits them the same again.

    values: (n, 128, 12). labels: (n,) activity codes. bouts: (n,). train, held_out: (n,) masks.
    """

    values: Floats
    labels: Ints
    bouts: Ints
    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]


def run(task: Task, settings: Settings, folder: Path) -> Result:
    """Collect, train, compare, register. Raises Retry if Kafka or MLflow are not there."""
    from workers import registry

    client = registry.connect(settings)
    known = registry.registered_for(client, settings.model, task.event_id)
    if known is not None:
        log.info("training.known", version=known.version)
        return Result(registered=known)
    registry.close_unfinished(client, settings.model, task.event_id)
    try:
        recent = _collect(task, settings, folder)
        return _train(task, settings, recent, client, folder)
    except _Decline as decline:
        return Result(declined=decline.declined)
    except WindowExpired as expired:
        return Result(declined=Declined("not-trained", "window-expired", str(expired)))


def _collect(task: Task, settings: Settings, folder: Path) -> Replayed:
    """The drifted device's readings since the change, or everything for the first model, once there are enough."""
    drift = task.drift
    deadline = time.monotonic() + settings.collect_seconds
    wanted = settings.first_windows if drift is None else settings.recent_windows
    activities = 2 if drift is None else settings.recent_activities
    seen: Sequence[OffsetRange] = ()
    labelled, kinds = 0, 0
    while True:
        ranges = _ranges_since(drift, settings)
        if ranges != seen:
            seen = ranges
            found = replay(settings, ranges, None if drift is None else drift.device)
            labels = np.concatenate([np.empty(0, np.int64), *(part.labels for part in found.windows.values())])
            labels = labels[labels != NO_LABEL]
            labelled, kinds = len(labels), len(np.unique(labels))
            (folder / PHASE).write_text(f"collecting: {labelled} of {wanted} labelled windows, {kinds} activities")
            if labelled >= wanted and kinds >= activities:
                log.info("window.pinned", ranges=str(ranges), windows=labelled, activities=kinds)
                return found
        if drift is not None and time.monotonic() > deadline:
            reason = "too-few-rows" if labelled else "no-labels"
            raise _Decline(
                "not-trained",
                reason,
                f"{labelled} of {wanted} labelled windows of {kinds} of {activities} activities came within "
                f"{settings.collect_seconds:g} s of the drift",
                windows=labelled,
                activities=kinds,
            )
        time.sleep(_POLL_S)


def _ranges_since(drift: DriftDetected | None, settings: Settings) -> list[OffsetRange]:
    if drift is None:
        return end_ranges(settings)
    partition, start = drift.change_position.partition, drift.change_position.offset
    return [OffsetRange(partition, start, max(start, end_ranges(settings, [partition])[0].end))]


def _train(task: Task, settings: Settings, recent: Replayed, client: Any, folder: Path) -> Result:
    # scikit-learn is imported only now: collecting may take long and needs no memory for it
    from workers import registry
    from workers.evaluation import Scores, confusion, judge, macro_f1
    from workers.figures import confusion_figure, feature_figure
    from workers.training import Labelled, candidates, fit_all, training_set

    (folder / PHASE).write_text("training")
    begun = time.monotonic()
    seed = (int(task.event_id[:8], 16) + settings.training_seed) % 2**31
    now = _piece(recent, settings)
    before = [_piece(replayed, settings) for replayed in _anchors(task, settings)]
    names = FEATURES if _all_have_rotation([now, *before]) else FEATURES_WITHOUT_ROTATION
    held_recent = features(now.values[now.held_out], names), now.labels[now.held_out]
    held_anchor = _stacked(
        [(features(piece.values[piece.held_out], names), piece.labels[piece.held_out]) for piece in before]
    )

    champion = None
    if task.champion is not None:
        champion = _champion_scores(task.champion, client, settings, names, held_recent, held_anchor, folder)
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
        raise _Decline("failed", "training-failed", f"no candidate could be trained: {failures}")

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
            confusion(held_recent[1], _predicted(best.pipeline, held_recent[0]), len(ACTIVITIES)),
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
    )
    numbers = {"seconds": round(time.monotonic() - begun, 1)}
    if not verdict.promote:
        registry.record_rejected(training, settings.model)
        numbers |= _numbers("challenger", scores[best.name])
        numbers |= {} if champion is None else _numbers("champion", champion)
        raise _Decline("rejected", verdict.reason, verdict.detail, **numbers)
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
    )
    (folder / PHASE).write_text("registering")
    winner = registry.Winner(best.pipeline, names, held_recent[0])
    return Result(registered=registry.register(client, settings.model, training, winner, draft))


def _anchors(task: Task, settings: Settings) -> list[Replayed]:
    """What earlier versions learned from, as far as the topic still holds it."""
    found = []
    for window in task.previous:
        try:
            found.append(replay(settings, window.ranges, window.device))
        except WindowExpired as expired:
            log.warning("anchor.expired", detail=str(expired))
    if task.previous and not found:
        raise _Decline("not-trained", "window-expired", "retention has deleted all that earlier versions learned from")
    return found


def _piece(replayed: Replayed, settings: Settings) -> Piece:
    from workers.evaluation import split
    from workers.training import bouts_of

    parts = {name: windows.chosen(windows.labels != NO_LABEL) for name, windows in sorted(replayed.windows.items())}
    values = np.concatenate([part.values for part in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    starts = np.concatenate([part.start for part in parts.values()])
    devices = np.repeat(np.array(list(parts)), [len(part) for part in parts.values()])
    chosen = split(labels, devices, starts, settings.training_seed)
    return Piece(values, labels, bouts_of(labels, devices, starts), chosen.train, chosen.held_out)


def _all_have_rotation(pieces: Sequence[Piece]) -> bool:
    return not any(np.isnan(piece.values[:, :, ROTATION]).any() for piece in pieces)


def _stacked(parts: Sequence[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    if not parts:
        return np.empty((0, 0)), np.empty(0, np.int64)
    return np.concatenate([table for table, _ in parts]), np.concatenate([labels for _, labels in parts])


def _predicted(pipeline: Any, table: Floats) -> Ints:
    """Activity codes from a pipeline that answers in names."""
    codes = {name: code for code, name in enumerate(ACTIVITIES)}
    return np.array([codes[name] for name in pipeline.predict(table).tolist()], np.int64)


def _champion_scores(
    champion: Champion,
    client: Any,
    settings: Settings,
    names: Sequence[str],
    held_recent: tuple[Floats, Ints],
    held_anchor: tuple[Floats, Ints],
    folder: Path,
) -> Any:
    """The champion on the very windows that the challengers are scored on; None if it wants other features."""
    from deploy.modelfiles import load, smoke_cases, verify
    from workers import registry
    from workers.evaluation import Scores, macro_f1

    files = registry.download(client, f"models:/{settings.model}/{champion.version}", folder / "champion")
    verify(files, champion.digest)
    if smoke_cases(files).columns != list(names):
        log.warning("champion.other-features", version=champion.version)
        return None
    pipeline = load(files)
    anchor = macro_f1(held_anchor[1], _predicted(pipeline, held_anchor[0])) if len(held_anchor[1]) else None
    return Scores(macro_f1(held_recent[1], _predicted(pipeline, held_recent[0])), anchor)


def _decline_if_unhurt(scores: Any, champion: Champion, settings: Settings) -> None:
    """A drift that does not hurt the champion needs no retraining: it is as good on the drifted data as before."""
    if scores is None or scores.recent is None or scores.anchor is None:
        return
    if scores.recent >= scores.anchor - settings.promote_margin:
        raise _Decline(
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


def _end_with_parent() -> None:
    """End when the worker that started us is gone: it holds the other end of stdin."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread that ends late would hold
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(folder: Path) -> int:
    """Run the folder's task; the exit code."""
    _end_with_parent()
    settings = load_settings()
    configure_logging(settings)
    structlog.contextvars.bind_contextvars(process="retrain-job")
    task = msgspec.json.decode((folder / TASK).read_bytes(), type=Task)
    try:
        result = run(task, settings, folder)
    except (Retry, UserError) as error:
        log.warning("training.retry", error=str(error))
        (folder / PHASE).write_text(str(error))
        return RETRY_EXIT
    (folder / RESULT).write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
