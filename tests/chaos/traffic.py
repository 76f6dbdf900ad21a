"""What the agent is given while it is killed: drifting people as singles and batches, and sensors' mistakes."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
from confluent_kafka import Producer

from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams.inject import apply, parse_drift
from streams.kafka import producer_config
from streams.producer import messages
from streams.simulator import simulate

START_TS = 1.7e9
SINGLES, BATCHED = 18, 6  # devices
BATCH = 10
BAD_EVERY = 60  # messages
DRIFTS = ("noise:0.3", "bias:0.3", "gain:1.6", "rotate:40")
_STEP_S = 0.02

Message = tuple[bytes | None, bytes | None]


def readings(count: int, seed: int) -> Iterator[tuple[int, Message]]:
    """At least count readings as messages, each with how many readings it holds (none in a sensor's mistake)."""
    seconds = count / (SINGLES + BATCHED) / 50 + 2
    recordings = []
    for recording in simulate(SINGLES + BATCHED, seconds, seed, START_TS, bout_seconds=(4, 12)):
        drift = parse_drift(f"{DRIFTS[len(recordings) % len(DRIFTS)]}@{seconds * 0.5:.3f}")
        recordings.append(apply(recording, drift, np.random.default_rng((seed, len(recordings)))))
    singles, batches = messages(recordings[:SINGLES]), messages(recordings[SINGLES:], BATCH)
    mistakes = random.Random(seed)
    sent = due = 0.0
    for number, single in enumerate(singles):
        yield 1, single
        sent += 1
        due += BATCHED / SINGLES
        if due >= BATCH and (batch := next(batches, None)) is not None:
            due -= BATCH
            yield BATCH, batch
        if number % BAD_EVERY == BAD_EVERY - 1:
            yield 0, mistake(single, mistakes)


def mistake(good: tuple[bytes, bytes], rng: random.Random) -> Message:
    """What a broken or careless sender makes of a message; `good` has just been sent."""
    key, value = good
    fields = json.loads(value)
    later = fields | {"ts": fields["ts"] + 0.005}
    return rng.choice(
        [
            (key, json.dumps(later | {"attitude.roll": float("nan")}).encode()),
            (key, json.dumps(later | {"userAcceleration.x": float("inf")}).encode()),
            (key, json.dumps(later | {"userAcceleration.y": 1e300}).encode()),
            (key, json.dumps(fields | {"ts": fields["ts"] - 5}).encode()),  # out of order
            (key, value),  # sent twice, which is no mistake of the data
            (key, value[: len(value) // 2]),
            (key, value.decode().encode("utf-16")),
            (key, json.dumps(later | {"attitude.yaw": "0.1"}).encode()),
            (key, b""),
            (key, None),
            (None, value),
            (b"phone-99", value),
            (key, b"[" * 2000),
            (key, b"x" * (256 * 1024 + 1)) if rng.random() < 0.05 else (key, b"\xff\xfe"),
        ]
    )


class Traffic:
    """A producer in a thread: `burst` lets it send at full rate, after which it goes on at `trickle` a second."""

    def __init__(self, settings: Settings, count: int, seed: int, rate: float) -> None:
        self.count = count
        self.rate = rate
        self.trickle = 0.0
        self.sent = 0
        self.failed = 0
        self._source = readings(count, seed)
        self._burst_until = 0
        self._ends = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._topic = settings.topic(ACTIVITY)
        self._producer = Producer(
            producer_config(settings, **{"delivery.timeout.ms": 600_000, "queue.buffering.max.messages": 1_000_000})
        )
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Send nothing until `resume`."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def burst(self, readings: int) -> None:
        """So many readings more at full rate."""
        self._burst_until = self.sent + readings

    @property
    def bursting(self) -> bool:
        return self.sent < min(self._burst_until, self.count)

    @property
    def exhausted(self) -> bool:
        return self.sent >= self.count

    def finish(self) -> None:
        """Send the rest at full rate; returns when all is acknowledged."""
        self._burst_until = self.count
        self._flows.set()
        self._thread.join()
        assert self._producer.flush(600) == 0

    def stop(self) -> None:
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._producer.flush(10)

    def _run(self) -> None:
        allowed, last = 0.0, time.monotonic()
        while not self._ends.is_set() and self.sent < self.count:
            time.sleep(_STEP_S)
            now = time.monotonic()
            if not self._flows.is_set():
                last = now
                continue
            rate = self.rate if self.bursting else self.trickle
            allowed, last = min(allowed + rate * (now - last), rate), now
            while allowed >= 1 and self.sent < self.count:
                holds, (key, value) = next(self._source)
                self._producer.produce(self._topic, key=key, value=value, on_delivery=self._reported)
                self.sent += holds
                allowed -= holds
            self._producer.poll(0)

    def _reported(self, error: object, _: object) -> None:
        self.failed += error is not None
