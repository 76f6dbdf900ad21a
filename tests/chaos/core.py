"""The agent's core, fed as the agent feeds it but with nothing that can go wrong: what should come of some records."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.detectors import DETECTORS
from streams.processor import Outcome, Processor
from streams.records import Record, chunk_of


class Core:
    """One partition, undisturbed."""

    def __init__(self, settings: Settings, partition: int) -> None:
        self.processor = Processor(
            settings.topic(ACTIVITY),
            partition,
            model=settings.model,
            load=lambda _: None,
            fresh=DETECTORS[settings.detector],
        )
        self.states: dict[str, bytes] = {}

    def process(self, records: Sequence[Record]) -> Outcome:
        """The outcome: `drifts`, `rejections`, `readings`; states are kept, as they would be saved."""
        outcome = self.processor.process(chunk_of(records))
        self.states |= self.processor.snapshot()
        return outcome
