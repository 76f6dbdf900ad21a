"""What every consumer does with a message: decode it, an ADWIN on each channel, count drifts, print figures at the end.

This is the job as a person would write it, with orjson and river's public API; the peers differ in how they are fed.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable

# Figures are taken until this share is done: the last readings wait for a timer, or come from one partition alone.
SHARE = 0.95


class Meter:
    """Counts readings; prints seconds and CPU from the first one on, and ends the process with the last one.

    drifts: asked at the end. CPU is that of the whole process, its client's threads included.
    """

    def __init__(self, readings: int, drifts: Callable[[], int]) -> None:
        self.readings = 0
        self.drifts = drifts
        self.moments: list[tuple[float, float, int]] = []
        self.targets = [1, math.ceil(SHARE * readings), readings]

    def count(self, readings: int = 1) -> None:
        """So many more are done."""
        self.readings += readings
        if self.readings >= self.targets[0]:
            self._reached()

    def _reached(self) -> None:
        while self.targets and self.readings >= self.targets[0]:
            self.moments.append((time.perf_counter(), time.process_time(), self.readings))
            del self.targets[0]
        if self.targets:
            return
        (began, cpu, first), (until, _, done), (_, cpu_end, last) = self.moments
        outcome = {
            "readings_per_s": (done - first) / (until - began) if until > began else 0.0,
            "cpu_s_per_million": (cpu_end - cpu) / max(last - first, 1) * 1e6,
            "readings": last,
            "drifts": self.drifts(),
        }
        print(json.dumps(outcome), flush=True)
        os._exit(0)  # frameworks take seconds to stop


class Work:
    """Detectors of all devices. `take` wants one message's value."""

    def __init__(self, given: argparse.Namespace) -> None:
        import orjson
        from river.drift import ADWIN

        self.loads, self.adwin = orjson.loads, ADWIN
        self.channels = given.channels.split(",")
        self.devices: dict[str, list] = {}
        self.drifts = 0
        self.meter = Meter(given.readings, lambda: self.drifts)
        self.take = self.batch if given.batches else self.single

    def detectors(self, device: str) -> list:
        detectors = self.devices.get(device)
        if detectors is None:
            detectors = self.devices[device] = [self.adwin() for _ in self.channels]
        return detectors

    def single(self, value: bytes) -> None:
        reading = self.loads(value)
        for channel, detector in zip(self.channels, self.detectors(reading["device"]), strict=True):
            detector.update(reading[channel])
            if detector.drift_detected:
                self.drifts += 1
        self.meter.count()

    def batch(self, value: bytes) -> None:
        readings = self.loads(value)
        for channel, detector in zip(self.channels, self.detectors(readings["device"]), strict=True):
            for each in readings[channel]:
                detector.update(each)
                if detector.drift_detected:
                    self.drifts += 1
        self.meter.count(len(readings["ts"]))


def arguments() -> argparse.Namespace:
    """What `tests.bench.consumers` tells a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--readings", type=int, required=True)
    parser.add_argument("--channels", required=True, help="of a reading, with commas between")
    parser.add_argument("--batches", action="store_true", help="a message is a batch of readings")
    parser.add_argument("--tuned", action="store_true", help="librdkafka may fetch far ahead")
    return parser.parse_args()


def librdkafka(given: argparse.Namespace) -> dict:
    """A consumer's configuration: the defaults, or what made it fastest here."""
    config = {"bootstrap.servers": given.bootstrap, "group.id": given.group, "auto.offset.reset": "earliest"}
    if given.tuned:
        config |= {
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 500_000,
            "queued.max.messages.kbytes": 262_144,
        }
    return config
