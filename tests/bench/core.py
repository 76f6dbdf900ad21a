"""CPU time of the agent's core per reading, without Kafka: decode, gate, windows, statistics, detector, state."""

import time

from streams.detectors import DETECTORS
from streams.processor import Processor
from streams.producer import messages
from streams.records import Record, chunk_of
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show

RUN = 1_000  # records handed over at a time


def measure(detector: str, batch: int, devices: int, seconds: float) -> dict[str, object]:
    """One row: a detector, a message form."""
    sent = messages(simulate(devices, seconds, 1, 1.7e9), batch)
    records = [Record(offset, None, key, value) for offset, (key, value) in enumerate(sent)]
    processor = Processor("activity", 0, model="activity", load=lambda _: None, fresh=DETECTORS[detector])
    begun, readings, drifts = time.process_time(), 0, 0
    for start in range(0, len(records), RUN):
        outcome = processor.process(chunk_of(records[start : start + RUN]))
        readings += outcome.readings
        drifts += len(outcome.drifts)
    spent = time.process_time() - begun
    sizes = [len(state) for state in processor.snapshot().values()]
    return {
        "detector": detector,
        "readings_a_message": batch,
        "us_a_reading": spent / readings * 1e6,
        "drifts": drifts,
        "state_bytes_per_device": sum(sizes) // len(sizes),
    }


def main() -> None:
    """Measure every detector with single readings and with batches."""
    arguments = parser(__doc__)
    arguments.add_argument("--devices", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=600)
    given = arguments.parse_args()
    rows = [measure(detector, batch, given.devices, given.seconds) for detector in DETECTORS for batch in (1, 50)]
    settings = {"devices": given.devices, "seconds": given.seconds, "records_a_run": RUN}
    show(Measurement("core", settings, rows=rows), given.json)


if __name__ == "__main__":
    main()
