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

from schemas.activity import ACTIVITIES, ROTATION
from schemas.events import DriftDetected, OffsetRange, TrainingWindow
from schemas.settings import Settings
from streams.measures import measure
from streams.quality import Quality
from streams.replay import Replayed, WindowExpired, end_ranges, replay
from streams.windows import NO_LABEL, Floats, Ints, Windows
from workers.controller import holds, over_before
from workers.retrain_task import Decline, Task

log = structlog.get_logger()

_POLL_S: Final = 1.5
PAST_WINDOWS: Final = 60  # labelled, from before a drift, of which something can be said
PAST_SPAN: Final = 6  # times a window's records: bouts differ by more than most drifts cost, so many are needed
MIN_ACTIVITIES: Final = 2  # that a classifier can be trained on
# What an activity lacks limits what a retraining heals. So more is waited for until all have twice what counts as
# there, at most so many times the windows needed, and until nothing has come for so long.
PATIENCE: Final = 1.5
STILL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Labelled windows of one training window, split once and for all: the same seed splits them the same again.

    values: (n, 128, 12). labels: (n,) activity codes. bouts: (n,). devices: (n,) names. starts: (n,) event time.
    train, held_out: (n,) masks.
    """

    values: Floats
    labels: Ints
    bouts: Ints
    devices: NDArray[np.str_]
    starts: Floats
    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, rows: NDArray[np.bool_]) -> Piece:
        """The windows of a mask."""
        return Piece(*(getattr(self, name)[rows] for name in Piece.__slots__))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose readings a training asks for, and since when. since: first offset by partition; null: all there is.

    first: for the first model, which waits for ever.
    """

    devices: tuple[str, ...] | None
    since: dict[int, int] | None
    first: bool = False


def wanted_by(task: Task, settings: Settings) -> Wanted:
    """The drifted devices' readings since the change, as far as no version has learned from them; everything for the
    first model; for a request, what has come since the last training.

    A drift whose readings retention has deleted while it waited is left out where there are others.
    """
    if task.drifts:
        starts = [
            (drift, drift.change_position.partition, unlearned_from(drift, task.previous)) for drift in task.drifts
        ]
        known = {item.partition: item.start for item in end_ranges(settings, sorted({each[1] for each in starts}))}
        there = [(drift, partition, start) for drift, partition, start in starts if start >= known[partition]] or starts
        if len(there) < len(starts):
            log.warning("drifts.expired", devices=sorted({each[0].device for each in starts if each not in there}))
        since: dict[int, int] = {}
        for _, partition, start in there:
            since[partition] = min(since.get(partition, start), start)
        return Wanted(tuple(sorted({drift.device for drift, _, _ in there})), since)
    if task.champion is None:
        return Wanted(None, None, first=True)
    ends: dict[int, int] = {}
    for window in task.previous:
        if task.device is None or holds(window, task.device):
            for item in window.ranges:
                ends[item.partition] = max(ends.get(item.partition, 0), item.end)
    since = {item.partition: _behind(ends.get(item.partition, 0), item) for item in end_ranges(settings)}
    return Wanted(None if task.device is None else (task.device,), since)


def _behind(end: int, there: OffsetRange) -> int:
    """Where what has come behind an offset begins. An offset beyond the end was another topic's, made anew since."""
    return there.start if end > there.end else max(there.start, end)


def collect(wanted: Wanted, settings: Settings, say: Callable[[str], None], until: float | None = None) -> Replayed:
    """Labelled windows, once there are enough of enough activities. until: as of a task.

    Raises Decline if they do not come in time, WindowExpired or Retry as `replay` does.
    """
    left = settings.collect_seconds if until is None else until - time.time()
    deadline = time.monotonic() + min(max(left, 0.0), settings.collect_seconds)  # a clock may be off
    needed = settings.first_windows if wanted.first else settings.recent_windows
    activities = 2 if wanted.first else settings.recent_activities
    seen: Sequence[OffsetRange] = ()
    found: Replayed | None = None
    labelled, kinds, may, full, grown = 0, 0, False, False, time.monotonic()
    while True:
        looked = time.monotonic()
        ranges = ranges_since(wanted, settings)
        if ranges != seen:
            seen, grown = ranges, time.monotonic()
            if found is None:
                say("collecting: reading what there is")
            found = enough(settings, ranges, wanted.devices, needed)
            counts = np.array([(found.window.activities or {}).get(name, 0) for name in ACTIVITIES])
            labelled, kinds = int(counts.sum()), int((counts >= settings.recent_per_activity).sum())
            say(f"collecting: {labelled} of {needed} labelled windows, {kinds} activities")
            if wanted.first:
                may = full = labelled >= needed and kinds >= activities
            else:
                may, full = (bool(each) for each in ripe(counts, settings))
        now = time.monotonic()
        took = now - looked
        if found is not None and (full or (may and (now > deadline or now - grown > STILL_S))):
            log.info("window.pinned", ranges=str(found.window.ranges), windows=labelled, activities=kinds)
            return found
        if not wanted.first and now > deadline:
            raise Decline(
                "not-trained",
                "too-few-rows" if labelled else "no-labels",
                f"{labelled} of {needed} labelled windows of {kinds} of {activities} activities came within "
                f"{settings.collect_seconds:g} s of the drift",
                windows=labelled,
                activities=kinds,
            )
        time.sleep(max(_POLL_S, took))  # a long topic is not read without a pause


def enough(settings: Settings, ranges: Sequence[OffsetRange], devices: Sequence[str] | None, needed: int) -> Replayed:
    """Labelled windows of the ranges: about as many as an anchor keeps, and twice those needed if one range has all.

    Raises as `replay` does.
    """
    most = max(settings.anchor_windows // max(len(ranges), 1), 2 * needed)
    return replay(settings, ranges, devices, labelled=True, most=most)


def ripe(counts: Ints, settings: Settings) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a retraining may be done, and whether it need not wait for more, by counts (…, 6) of labelled windows."""
    total, kinds = counts.sum(-1), (counts >= settings.recent_per_activity).sum(-1)
    may = (total >= settings.recent_windows) & (kinds >= settings.recent_activities)
    all_there = (counts >= 2 * settings.recent_per_activity).all(-1)
    return may, may & (all_there | (total >= PATIENCE * settings.recent_windows))


def ranges_since(wanted: Wanted, settings: Settings) -> list[OffsetRange]:
    """The records that there are now of what is wanted."""
    if wanted.since is None:
        return end_ranges(settings)
    ends = {item.partition: item.end for item in end_ranges(settings, sorted(wanted.since))}
    return [OffsetRange(number, start, max(start, ends[number])) for number, start in sorted(wanted.since.items())]


def past(window: TrainingWindow, previous: Sequence[TrainingWindow], settings: Settings) -> Piece | None:
    """The same devices before the window, as far as no version has learned from them; None if that is too little.

    At most PAST_SPAN times as many records as the window has: what a device did last year says nothing of its drift.
    """
    names = devices_of(window)
    lows = {item.partition: item.start for item in end_ranges(settings, [item.partition for item in window.ranges])}
    ranges = []
    for item in window.ranges:
        learned = [
            other.end
            for each in previous
            if names is None or any(holds(each, name) for name in names)
            for other in each.ranges
            if other.partition == item.partition and other.end <= item.start
        ]
        start = max(lows[item.partition], item.start - PAST_SPAN * (item.end - item.start), *learned, 0)
        if start < item.start:
            ranges.append(OffsetRange(item.partition, start, item.start))
    try:
        found = replay(settings, ranges, names, labelled=True)
        return piece_of(found, settings) if (found.window.windows or 0) >= PAST_WINDOWS else None
    except (WindowExpired, Decline) as error:
        log.info("past.unknown", detail=str(error))
        return None


def ranges_behind(window: TrainingWindow, settings: Settings) -> list[OffsetRange]:
    """What has come behind a training window, on its partitions. By offsets: clocks may be wrong, these are not."""
    there = {item.partition: item for item in end_ranges(settings, [item.partition for item in window.ranges])}
    return [
        OffsetRange(item.partition, _behind(item.end, there[item.partition]), there[item.partition].end)
        for item in window.ranges
    ]


def unlearned_from(drift: DriftDetected, previous: Sequence[TrainingWindow]) -> int:
    """The offset of the change, or the end of what an earlier version has learned of this device since.

    A change is seen late. What the champion learned from in between would flatter it as recent data.
    """
    change = drift.change_position
    ends = [
        item.end
        for window in previous
        if holds(window, drift.device) and not over_before(window, drift)
        for item in window.ranges
        if item.partition == change.partition
    ]
    return max(change.offset, *ends) if ends else change.offset


def anchors(previous: Sequence[TrainingWindow], settings: Settings) -> list[Replayed]:
    """What earlier versions learned from, as far as the topic still holds it. Raises Decline if it holds nothing."""
    found = []
    for window in previous:
        try:
            found.append(replay(settings, window.ranges, devices_of(window), labelled=True))
        except WindowExpired as expired:
            log.warning("anchor.expired", detail=str(expired))
    if previous and not found:
        raise Decline("not-trained", "window-expired", "retention has deleted all that earlier versions learned from")
    return found


def devices_of(window: TrainingWindow) -> list[str] | None:
    """Whose readings a window holds; None: everybody's."""
    return window.devices if window.device is None else [window.device]


def piece_of(replayed: Replayed, settings: Settings, activities: int = MIN_ACTIVITIES) -> Piece:
    """The labelled windows of what was read, split; without those in which a channel did not measure.

    Raises Decline if less than so many activities are among them: `no-labels`, `one-activity`, or `quality` where that
    is because of a sensor's fault, which is mended, not learned.
    """
    from workers.evaluation import split
    from workers.training import bouts_of

    parts, kinds, dropped = {}, set(), 0
    for name, windows in sorted(replayed.windows.items()):
        labelled = windows.labels != NO_LABEL
        broken = replayed.broken.get(name)
        sound = labelled & ~(faulty_of(windows) if broken is None else broken)
        parts[name] = windows.chosen(sound)
        kinds |= set(windows.labels[labelled].tolist())
        dropped += int(labelled.sum() - sound.sum())
    left = {label for part in parts.values() for label in part.labels.tolist()}
    if len(left) < activities:
        if len(kinds) >= activities:
            detail = f"{dropped} labelled windows lie in a span in which a channel did not measure"
            raise Decline("not-trained", "quality", detail, dropped=dropped)
        if kinds:
            detail = f"all labelled windows show one activity ({ACTIVITIES[kinds.pop()]})"
            raise Decline("not-trained", "one-activity", detail)
        raise Decline("not-trained", "no-labels", "no window has a label")
    values = np.concatenate([part.values for part in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    starts = np.concatenate([part.start for part in parts.values()])
    devices = np.repeat(np.array(list(parts)), [len(part) for part in parts.values()])
    chosen = split(labels, devices, starts, settings.training_seed)
    return Piece(values, labels, bouts_of(labels, devices, starts), devices, starts, chosen.train, chosen.held_out)


def faulty_of(windows: Windows) -> NDArray[np.bool_]:
    """(n,) which of a device's windows lie in a span that the agent tells `QualityDegraded` of, as far as they show."""
    measures = [measure(windows.values[begin : begin + 512]) for begin in range(0, len(windows), 512)]
    if not measures:
        return np.zeros(0, np.bool_)
    return Quality().broken(replace(windows, measures=np.concatenate(measures)))


def all_have_rotation(pieces: Sequence[Piece]) -> bool:
    """Whether every reading of them came with rotationRate."""
    return not any(np.isnan(piece.values[:, :, ROTATION]).any() for piece in pieces)


def anchor_sample(pieces: Sequence[Piece], most: int, seed: int) -> list[Piece]:
    """At most about so many windows of the pieces, whole bouts, activities evenly: what a new model must not forget.

    A window that was held out stays held out.
    """
    if sum(map(len, pieces)) <= most:
        return list(pieces)
    rng = np.random.default_rng(seed)
    found = [np.zeros(len(piece), np.bool_) for piece in pieces]
    left = most
    codes = np.concatenate([piece.labels for piece in pieces])
    activities, counts = np.unique(codes, return_counts=True)
    for number, label in enumerate(activities[np.argsort(counts, kind="stable")].tolist()):
        share = max(1, left // (len(activities) - number))
        bouts = [
            (i, bout)
            for i, piece in enumerate(pieces)
            for bout in np.unique(piece.bouts[piece.labels == label]).tolist()
        ]
        taken = 0
        for at in rng.permutation(len(bouts)).tolist():
            if taken >= share:
                break
            i, bout = bouts[at]
            rows = pieces[i].bouts == bout
            found[i] |= rows
            taken += int(rows.sum())
        left -= taken
    return [piece.chosen(rows) for piece, rows in zip(pieces, found, strict=True) if rows.any()]
