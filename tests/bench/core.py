"""CPU time of the agent's core per reading, without Kafka: decode, gate, windows, statistics, detector, state.

First a backlog, worked off by every detector. Then `live`: so many devices at 50 Hz as they send, `confirmed` with a
profile, no labels, calibrated; the share of one core that it takes, and what of that is detection (measures, activity,
ADWINs, confirmation). A quarter of the devices is played, as one partition of four holds.
"""

import time
from dataclasses import replace

import numpy as np

from streams.confirmed import Confirmed, ConfirmedDetector
from streams.detectors import DETECTORS
from streams.processor import Processor
from streams.producer import messages
from streams.records import Record, chunk_of
from streams.simulator import simulate
from streams.windows import NO_LABEL
from tests.bench.report import Measurement, parser, show
from workers.backtest import reference_profile

RUN = 1_000  # records handed over at a time
PARTITIONS = 4
CALIBRATION_S = 60.0
LIVE_S = 150.0


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


class Watched(Confirmed):
    """`confirmed`, with a watch on what its calls cost."""

    def __init__(self) -> None:
        super().__init__("standard", "model", CALIBRATION_S)
        self.spent = 0.0
        self.adopt("bench", reference_profile(simulate(8, 900, 7, 1.6e9), 1))

    def measure(self, values):
        begun = time.thread_time()
        found = super().measure(values)
        self.spent += time.thread_time() - begun
        return found

    def __call__(self):
        return WatchedDetector(self)


class WatchedDetector(ConfirmedDetector):
    """One device's."""

    def observe(self, readings, windows, refused=()):
        begun = time.thread_time()
        found = super().observe(readings, windows, refused)
        self.kind.spent += time.thread_time() - begun
        return found


def live(batch: int, devices: int) -> dict[str, object]:
    """One row: what devices at 50 Hz cost once they are calibrated, a second of a partition at a time."""
    mine = devices // PARTITIONS
    people = [replace(each, labels=np.full(len(each), NO_LABEL)) for each in simulate(mine, LIVE_S, 1, 1.7e9)]
    records = [Record(offset, None, key, value) for offset, (key, value) in enumerate(messages(people, batch))]
    kind, second = Watched(), mine * 50 // batch
    processor = Processor("activity", 0, model="activity", load=lambda _: None, fresh=kind)
    spent = seconds = windows = 0.0
    for start in range(0, len(records), second):
        calibrated = start / second > CALIBRATION_S + 20
        kind.spent = kind.spent if calibrated else 0.0
        begun = time.thread_time()
        outcome = processor.process(chunk_of(records[start : start + second]))
        if calibrated:
            spent += time.thread_time() - begun
            seconds += 1
            windows += outcome.windows
    return {
        "readings_a_message": batch,
        "devices": devices,
        "core_percent": 100 * spent / seconds * PARTITIONS,
        "detection_percent": 100 * kind.spent / seconds * PARTITIONS,
        "detection_us_a_window": kind.spent / windows * 1e6,
        "state_bytes_per_device": sum(map(len, processor.snapshot().values())) // mine,
    }


def main() -> None:
    """Measure every detector with single readings and with batches; then devices that are followed live."""
    arguments = parser(__doc__)
    arguments.add_argument("--devices", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=600)
    arguments.add_argument("--live", type=int, default=1_000, help="devices that are followed live; default 1,000")
    given = arguments.parse_args()
    rows = [measure(detector, batch, given.devices, given.seconds) for detector in DETECTORS for batch in (1, 50)]
    followed = [live(batch, given.live) for batch in (1, 50)]
    figures = {
        f"live_{name}_batch{row['readings_a_message']}": value
        for row in followed
        for name, value in row.items()
        if name not in ("devices", "readings_a_message")
    }
    settings = {"devices": given.devices, "seconds": given.seconds, "records_a_run": RUN}
    settings |= {"live_devices": given.live, "live_hz": 50, "live_partitions": PARTITIONS}
    show(Measurement("core", settings, figures, rows), given.json)


if __name__ == "__main__":
    main()
