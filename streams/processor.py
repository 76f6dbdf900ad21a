"""The agent's core: a run of raw records of one partition in, drift events, dead letters and new state out.

It knows nothing of Faust or Kafka clients. Processing the same records again, in runs of any length, gives the same
events with the same ids and the same state: that is what makes a crash harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.errors import Reject
from schemas.events import DriftDetected, Position, event_id
from streams.drift import Change, Detector
from streams.gate import Decoded, Record, Rejection, accept, add, decode
from streams.state import DeviceState
from streams.windows import cut, joined


@dataclass(frozen=True, slots=True)
class Drift:
    """A drift event with its deterministic id."""

    id: str
    event: DriftDetected


@dataclass(slots=True)
class Outcome:
    """What a run of records led to. changed: devices whose state must be made durable before the run is committed."""

    drifts: list[Drift] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    changed: dict[str, DeviceState] = field(default_factory=dict)
    readings: int = 0
    windows: int = 0
    duplicates: int = 0


class Processor:
    """Devices of one partition.

    load: a device's saved state, or None. fresh: a new detector. model_version: the version that serves now, if known;
    it is told in events but decides nothing, so replays agree on ids.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        model: str,
        load: Callable[[str], DeviceState | None],
        fresh: Callable[[], Detector],
        model_version: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.model = model
        self.load = load
        self.fresh = fresh
        self.model_version = model_version
        self.devices: dict[str, DeviceState] = {}

    def process(self, records: Sequence[Record]) -> Outcome:
        """Take a run of records in offset order."""
        outcome = Outcome()
        by_device: dict[str, Decoded] = {}
        for index, record in enumerate(records):
            try:
                message = decode(record)
                state = self._state(message.device)
                if record.offset <= state.last_offset:
                    continue  # seen before a crash or a rebalance; its effects are durable
                add(by_device.setdefault(message.device, Decoded()), message, index)
            except Reject as reject:
                outcome.rejections.append(Rejection(record, reject.reject_class, reject.reason))
        for device, decoded in by_device.items():
            self._advance(device, decoded, records, outcome)
        outcome.drifts.sort(key=lambda drift: drift.event.position.offset)
        outcome.rejections.sort(key=lambda rejection: rejection.record.offset)
        return outcome

    def _state(self, device: str) -> DeviceState:
        state = self.devices.get(device)
        if state is None:
            state = self.devices[device] = self.load(device) or DeviceState(self.fresh())
        return state

    def _advance(self, device: str, decoded: Decoded, records: Sequence[Record], outcome: Outcome) -> None:
        state = self._state(device)
        if decoded.source:
            passed = accept(decoded, records, state.last_ts, state.known)
            windows, state.buffer = cut(joined([state.buffer, passed.readings]))
            changes = state.detector.observe(passed.readings, windows)
            state.known = passed.known
            if len(passed.readings):
                state.last_ts = float(passed.readings.ts[-1])
            state.last_offset = records[decoded.source[-1]].offset
            outcome.drifts += self._events(device, changes, state.detector.config)
            outcome.rejections += passed.rejections
            outcome.readings += len(passed.readings)
            outcome.windows += len(windows)
            outcome.duplicates += passed.duplicates
            outcome.changed[device] = state

    def _events(self, device: str, changes: list[Change], config: str) -> list[Drift]:
        drifts = []
        for change in changes:
            episode = event_id("episode", self.topic, self.partition, device, change.offset, change.ts, config)
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
            )
            drifts.append(Drift(event_id("drift", episode, change.feature, change.statistic), event))
        return drifts
