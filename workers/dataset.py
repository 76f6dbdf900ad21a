"""The labelled windows of a retraining: waited for, read back from `activity`, and split into train and held out.

A training window is pinned as offset ranges, so that the next training finds the same windows in it and, with the
same seed, the same ones held out: no model is ever scored on what it or its champion has learned from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from schemas.activity import ROTATION
from schemas.events import DriftDetected, OffsetRange, TrainingWindow
from schemas.settings import Settings
from streams.measures import measure
from streams.quality import Quality
from streams.replay import Replayed, WindowExpired, end_ranges, replay
from streams.windows import NO_LABEL, Floats, Ints, Windows
from workers.retrain_task import Decline

log = structlog.get_logger()

_POLL_S: Final = 1.5
MIN_ACTIVITIES: Final = 2  # that a classifier can be trained on


@dataclass(frozen=True, slots=True)
class Piece:
    """Labelled windows of one training window, split once and for all: the same seed splits them the same again.

    values: (n, 128, 12). labels: (n,) activity codes. bouts: (n,). devices: (n,) names. train, held_out: (n,) masks.
    """

    values: Floats
    labels: Ints
    bouts: Ints
    devices: NDArray[np.str_]
    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]


def collect(
    drift: DriftDetected | None, previous: Sequence[TrainingWindow], settings: Settings, say: Callable[[str], None]
) -> Replayed:
    """The drifted device's readings since the change, or everything for the first model, once there are enough.

    Raises Decline if they do not come in time, WindowExpired or Retry as `replay` does.
    """
    deadline = time.monotonic() + settings.collect_seconds
    wanted = settings.first_windows if drift is None else settings.recent_windows
    activities = 2 if drift is None else settings.recent_activities
    seen: Sequence[OffsetRange] = ()
    labelled, kinds = 0, 0
    while True:
        ranges = ranges_since(drift, previous, settings)
        if ranges != seen:
            seen = ranges
            found = replay(settings, ranges, None if drift is None else drift.device)
            labels = np.concatenate([np.empty(0, np.int64), *(part.labels for part in found.windows.values())])
            labels = labels[labels != NO_LABEL]
            labelled, kinds = len(labels), len(np.unique(labels))
            say(f"collecting: {labelled} of {wanted} labelled windows, {kinds} activities")
            if labelled >= wanted and kinds >= activities:
                log.info("window.pinned", ranges=str(ranges), windows=labelled, activities=kinds)
                return found
        if drift is not None and time.monotonic() > deadline:
            raise Decline(
                "not-trained",
                "too-few-rows" if labelled else "no-labels",
                f"{labelled} of {wanted} labelled windows of {kinds} of {activities} activities came within "
                f"{settings.collect_seconds:g} s of the drift",
                windows=labelled,
                activities=kinds,
            )
        time.sleep(_POLL_S)


def ranges_since(
    drift: DriftDetected | None, previous: Sequence[TrainingWindow], settings: Settings
) -> list[OffsetRange]:
    """Everything there is for the first model; for a drift, what has come since the change and nobody learned from."""
    if drift is None:
        return end_ranges(settings)
    partition = drift.change_position.partition
    start = unlearned_from(drift, previous)
    return [OffsetRange(partition, start, max(start, end_ranges(settings, [partition])[0].end))]


def unlearned_from(drift: DriftDetected, previous: Sequence[TrainingWindow]) -> int:
    """The offset of the change, or the end of what an earlier version has learned of this device since.

    A change is seen late. What the champion learned from in between would flatter it as recent data.
    """
    change = drift.change_position
    ends = [
        item.end
        for window in previous
        if window.device in (None, drift.device)
        for item in window.ranges
        if item.partition == change.partition
    ]
    return max(change.offset, *ends) if ends else change.offset


def anchors(previous: Sequence[TrainingWindow], settings: Settings) -> list[Replayed]:
    """What earlier versions learned from, as far as the topic still holds it. Raises Decline if it holds nothing."""
    found = []
    for window in previous:
        try:
            found.append(replay(settings, window.ranges, window.device))
        except WindowExpired as expired:
            log.warning("anchor.expired", detail=str(expired))
    if previous and not found:
        raise Decline("not-trained", "window-expired", "retention has deleted all that earlier versions learned from")
    return found


def piece_of(replayed: Replayed, settings: Settings) -> Piece:
    """The labelled windows of what was read, split; without those in which a channel did not measure.

    Raises Decline `quality` if that leaves less than two activities: a sensor's fault is mended, not learned.
    """
    from workers.evaluation import split
    from workers.training import bouts_of

    parts = {
        name: windows.chosen((windows.labels != NO_LABEL) & measuring(windows))
        for name, windows in sorted(replayed.windows.items())
    }
    dropped = sum(map(len, replayed.windows.values())) - sum(map(len, parts.values()))
    if len({label for part in parts.values() for label in part.labels.tolist()}) < MIN_ACTIVITIES:
        detail = f"{dropped} windows have no label or lie in a span in which a channel did not measure"
        raise Decline("not-trained", "quality", detail, dropped=dropped)
    values = np.concatenate([part.values for part in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    starts = np.concatenate([part.start for part in parts.values()])
    devices = np.repeat(np.array(list(parts)), [len(part) for part in parts.values()])
    chosen = split(labels, devices, starts, settings.training_seed)
    return Piece(values, labels, bouts_of(labels, devices, starts), devices, chosen.train, chosen.held_out)


def measuring(windows: Windows) -> NDArray[np.bool_]:
    """(n,) which of a device's windows lie in no span that the agent tells `QualityDegraded` of."""
    measures = [measure(windows.values[begin : begin + 512]) for begin in range(0, len(windows), 512)]
    if not measures:
        return np.zeros(0, np.bool_)
    _, broken = Quality().observe(replace(windows, measures=np.concatenate(measures)))
    return np.ones(len(windows), np.bool_) if broken is None else np.asarray(~broken.any(1))


def all_have_rotation(pieces: Sequence[Piece]) -> bool:
    """Whether every reading of them came with rotationRate."""
    return not any(np.isnan(piece.values[:, :, ROTATION]).any() for piece in pieces)
