"""The agent's core, fed as the agent feeds it but with nothing that can go wrong: what should come of some records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams import processor, state
from streams.detectors import DETECTORS

try:
    from streams.records import Record, chunk_of
except ImportError:
    from streams.gate import Record

    chunk_of = list  # type: ignore[assignment]

__all__ = ["Core", "Record", "last_offset"]


class Core:
    """One partition, undisturbed."""

    def __init__(self, settings: Settings, partition: int) -> None:
        self.processor = processor.Processor(
            settings.topic(ACTIVITY),
            partition,
            model=settings.model,
            load=lambda _: None,
            fresh=DETECTORS[settings.detector],
        )
        self.states: dict[str, bytes] = {}

    def process(self, records: Sequence[Record]) -> Any:
        """The outcome: `drifts`, `rejections`, `readings`; states are kept, as they would be saved."""
        outcome = self.processor.process(chunk_of(records))
        if hasattr(outcome, "changed"):
            self.states |= {device: state.encode(each) for device, each in outcome.changed.items()}
        else:
            self.states |= self.processor.snapshot()
        return outcome


def last_offset(blob: bytes, settings: Settings) -> int:
    """The last record whose effects are in a saved state."""
    if hasattr(state, "last_offset"):
        return state.last_offset(blob)
    return state.decode(blob, DETECTORS[settings.detector]).last_offset
