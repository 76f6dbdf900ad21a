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


class Decline(Exception):
    """Ends a task without a model."""

    def __init__(self, outcome: str, reason: str, detail: str, **numbers: float) -> None:
        super().__init__(detail)
        self.declined = Declined(outcome, reason, detail, numbers)
