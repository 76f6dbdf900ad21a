"""The agent's core: a chunk of raw records of one partition in, drift events, dead letters and new state out.

It knows nothing of Faust or Kafka clients. Processing the same records again, in chunks of any length, gives the same
events with the same ids and the same state: that is what makes a crash harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from schemas.events import DriftDetected, Position, QualityDegraded, WindowStatistics, event_id
from schemas.failpoints import reach
from streams import state
from streams.devicestats import DeviceStatistics
from streams.drift import Change, Detector, Kind
from streams.gate import Rejection, decode_chunk
from streams.intake import Buffered, Intake, Names
from streams.quality import Degraded, refused_by_device
from streams.records import Chunk
from streams.windows import empty_readings, no_windows


@dataclass(frozen=True, slots=True)
class Drift:
    """An event of the drift topic with its deterministic id."""

    id: str
    event: DriftDetected | QualityDegraded


@dataclass(slots=True)
class Outcome:
    """What a chunk led to, apart from new state."""

    drifts: list[Drift] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    shown: list[WindowStatistics] = field(default_factory=list)
    readings: int = 0
    windows: int = 0
    duplicates: int = 0


class Processor:
    """Devices of one partition.

    load: a device's saved state, or None. fresh: a new detector. model_version: the version that serves now, if known;
    it is told in events but decides nothing, so replays agree on ids. clock: seconds, to tell which devices are silent.
    show: for people to look at.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        model: str,
        load: Callable[[str], bytes | None],
        fresh: Kind,
        model_version: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        show: DeviceStatistics | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.model = model
        self.load = load
        self.fresh = fresh
        self.measure = fresh.measure
        self.model_version = model_version
        self.clock = clock
        self.show = show
        self.intake = Intake(windowed=self.measure is not None)
        self.names = Names(self._added)
        self.detectors: list[Detector] = []
        self.dirty: set[int] = set()
        self.used: list[float] = []

    def _added(self, device: str, row: int) -> None:
        blob = self.load(device)
        buffered, detector = state.decode(blob, self.fresh) if blob is not None else (None, self.fresh())
        self.intake.reserve(row)
        self.intake.restore(row, buffered or Buffered())
        if row == len(self.detectors):
            self.detectors.append(detector)
            self.used.append(0.0)
        else:
            self.detectors[row] = detector

    def process(self, chunk: Chunk) -> Outcome:
        """Take a chunk, which comes in offset order."""
        rows, rejections = decode_chunk(chunk, self.names)
        reach("after-decode")
        taken = self.intake.take(rows, chunk)
        outcome = Outcome(
            rejections=sorted([*rejections, *taken.rejections], key=lambda rejection: rejection.record.offset),
            readings=len(taken.readings),
            windows=len(taken.windows),
            duplicates=taken.duplicates,
        )
        changed = taken.changed.tolist()
        self.dirty.update(changed)
        now = self.clock()
        for row in changed:
            self.used[row] = now
        if self.measure is None:
            nothing = no_windows()
            bounds = taken.bounds.tolist()
            for number, row in enumerate(taken.rows.tolist()):
                readings = taken.readings.part(bounds[number], bounds[number + 1])
                self._report(row, self.detectors[row].observe(readings, nothing), outcome)
        else:
            none, refused = empty_readings(), refused_by_device(outcome.rejections, self.names)
            if len(taken.windows):
                windows = replace(taken.windows, measures=self.measure(taken.windows.values))
                firsts = np.flatnonzero(np.diff(taken.window_rows, prepend=-1)).tolist()
                for first, end in zip(firsts, [*firsts[1:], len(windows)], strict=True):
                    row = int(taken.window_rows[first])
                    of_device = windows.chosen(slice(first, end))
                    if self.show is not None and (shown := self.show.of(self.names.by_row[row], of_device)):
                        outcome.shown.append(shown)
                    found = self.detectors[row].observe(none, of_device, refused.pop(row, ()))
                    self._report(row, found, outcome)
            for row, items in refused.items():
                self._report(row, self.detectors[row].observe(none, no_windows(), items), outcome)
        outcome.drifts.sort(key=lambda drift: drift.event.position.offset)
        reach("after-update")
        return outcome

    def snapshot(self) -> dict[str, bytes]:
        """The state of each device that has changed since the last snapshot."""
        found = {self.names.by_row[row]: self._state(row) for row in sorted(self.dirty)}
        self.dirty.clear()
        return found

    def silent(self, seconds: float) -> dict[str, bytes]:
        """Forget devices that have sent nothing for so long and whose state is saved; their state, to load it again."""
        before = self.clock() - seconds
        rows = [row for row in self.names.values() if self.used[row] < before and row not in self.dirty]
        found = {self.names.by_row[row]: self._state(row) for row in rows}
        self.names.drop(rows)
        for row in rows:
            self.detectors[row] = self.fresh()  # lets go of the old one
        return found

    def _state(self, row: int) -> bytes:
        return state.encode(self.intake.buffered(row), self.detectors[row])

    def _report(self, row: int, found: list[Change | Degraded], outcome: Outcome) -> None:
        device, config = self.names.by_row[row], self.detectors[row].config
        for change in found:
            if isinstance(change, Degraded):
                outcome.drifts.append(self._fault(device, change))
                continue
            # Of an epoch there is one alarm: its id is the same even if a crash falls between two profiles, and what is
            # played again is judged by the later one, a window sooner or later.
            when = (change.offset, change.ts) if change.epoch is None else ("epoch", change.epoch)
            episode = event_id("episode", self.topic, self.partition, device, *when, config)
            event = DriftDetected(
                device=device,
                model=self.model,
                feature=change.feature,
                statistic=change.statistic,
                activity=change.activity,
                detector="adwin",
                severity=change.severity,
                effect=round(change.effect, 3),
                direction=change.direction,
                before=round(change.before, 6),
                after=round(change.after, 6),
                ts=change.ts,
                change_ts=change.change_ts,
                position=Position(self.topic, self.partition, change.offset),
                change_position=Position(self.topic, self.partition, change.change_offset),
                model_version=self.model_version(),
                episode=episode,
                test=change.test,
                estimate=change.estimate,
            )
            outcome.drifts.append(Drift(event_id("drift", episode, change.feature, change.statistic), event))

    def _fault(self, device: str, fault: Degraded) -> Drift:
        event = QualityDegraded(
            device=device,
            model=self.model,
            channel=fault.channel,
            fault=fault.fault,
            ts=fault.ts,
            position=Position(self.topic, self.partition, fault.offset),
            ended=fault.ended,
        )
        about = (self.topic, self.partition, device, fault.channel, fault.fault, fault.offset, fault.ts, fault.ended)
        return Drift(event_id("quality", *about), event)
