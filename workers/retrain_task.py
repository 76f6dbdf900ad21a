"""What the retrain worker and the process that trains for it tell each other, in files of a folder that they share."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.events import DriftDetected, ModelRegistered, TrainingWindow

RETRY_EXIT: Final = 75  # EX_TEMPFAIL
TASK, RESULT, PHASE = "task.json", "result.json", "phase"
# How a phase begins in which the child only waits; what is not that has a deadline.
WAITING: Final = ("collecting", "waiting")


class Champion(msgspec.Struct):
    """The version to beat. run_id: its training, beside which its anchor is kept."""

    version: str
    digest: str
    run_id: str = ""


class ToProve(msgspec.Struct):
    """A deployment whose effect is to be shown. window: what the new version has learned; again: drifts since.

    final: whether to judge by what there is.
    """

    new: Champion
    previous: Champion
    window: TrainingWindow
    again: int
    final: bool


class Task(msgspec.Struct):
    """What to train. event_id: names it for good. drifts: what asks for it, caused_by: their ids; none for the first
    model and for a request. previous: windows that earlier versions learned from, oldest first. device: a request's.
    forced: whether to train although the champion is not hurt. attempt: of this task, from 0.
    repeat: the run whose windows are trained on again.
    until: when to stop waiting for
    readings, seconds since the epoch, if that was set before. proof: no training at all, but this.
    """

    event_id: str
    drifts: list[DriftDetected] = []
    caused_by: list[str] = []
    champion: Champion | None = None
    previous: list[TrainingWindow] = []
    device: str | None = None
    forced: bool = False
    attempt: int = 0
    repeat: str | None = None
    until: float | None = None
    proof: ToProve | None = None


class Declined(msgspec.Struct):
    """Why nothing was registered, or, beside a registration, why it was."""

    outcome: str
    reason: str
    detail: str
    numbers: dict[str, float] = {}
    cause: str | None = None


class Result(msgspec.Struct):
    """What came of a task: a version, with what the gate has found, or the decision not to have one.

    not_yet: there are too few readings for a verdict.
    """

    registered: ModelRegistered | None = None
    declined: Declined | None = None
    not_yet: bool = False


class Decline(Exception):
    """Ends a task without a model."""

    def __init__(self, outcome: str, reason: str, detail: str, cause: str | None = None, **numbers: float) -> None:
        super().__init__(detail)
        self.declined = Declined(outcome, reason, detail, numbers, cause)
