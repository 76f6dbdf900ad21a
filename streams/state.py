"""One device's state as one value: what the agent must remember to go on as if nothing had happened.

Plain numbers through msgspec, never pickle: a value from a topic is data, not code. It is stamped with the format, the
river version and the detector's config; state with another stamp is not read, the device starts fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import msgspec
import numpy as np

from schemas.activity import CHANNEL_NAMES
from schemas.errors import Stop
from streams.drift import Detector
from streams.gate import Prints, nothing_known
from streams.windows import Readings, empty_readings

FORMAT: Final = 2


@dataclass(slots=True)
class DeviceState:
    """last_offset: the last record whose effects are in here. buffer: readings that the next window still needs.

    known: fingerprints of the last readings, by which one that is sent again is known.
    """

    detector: Detector
    last_offset: int = -1
    last_ts: float = float("-inf")
    buffer: Readings = field(default_factory=empty_readings)
    known: Prints = field(default_factory=nothing_known)


class _Stamped(msgspec.Struct, array_like=True):
    """What every format begins with, so that state of another one can still tell where it ends."""

    stamp: str
    last_offset: int
    last_ts: float | None


class _Saved(_Stamped, array_like=True):
    ts: bytes
    values: bytes
    labels: bytes
    offsets: bytes
    known: bytes
    detector: Any


def stamp(detector: Detector) -> str:
    """What must be the same for saved state to be read."""
    return f"{FORMAT}/river {version('river')}/{detector.config}"


def encode(state: DeviceState) -> bytes:
    """The state as bytes (msgpack)."""
    buffer = state.buffer
    return msgspec.msgpack.encode(
        _Saved(
            stamp(state.detector),
            state.last_offset,
            state.last_ts if np.isfinite(state.last_ts) else None,
            buffer.ts.tobytes(),
            buffer.values.tobytes(),
            buffer.labels.tobytes(),
            buffer.offsets.tobytes(),
            state.known.tobytes(),
            state.detector.dump(),
        )
    )


def decode(blob: bytes, fresh: Callable[[], Detector]) -> DeviceState:
    """The state of `encode`; with a fresh detector and no buffer, but the same last offset, if the stamp differs.

    Raises Stop if the bytes are none that `encode` could have written.
    """
    detector = fresh()
    try:
        stamped = msgspec.msgpack.decode(blob, type=_Stamped)
        last_ts = float("-inf") if stamped.last_ts is None else stamped.last_ts
        if stamped.stamp != stamp(detector):
            return DeviceState(detector, stamped.last_offset, last_ts)
        saved = msgspec.msgpack.decode(blob, type=_Saved)
        detector.load(saved.detector)
        buffer = Readings(
            np.frombuffer(saved.ts, np.float64),
            np.frombuffer(saved.values, np.float64).reshape(-1, len(CHANNEL_NAMES)),
            np.frombuffer(saved.labels, np.int64),
            np.frombuffer(saved.offsets, np.int64),
        )
        known = np.frombuffer(saved.known, np.uint32)
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise Stop(f"a device's saved state cannot be read: {error}") from error
    return DeviceState(detector, saved.last_offset, last_ts, buffer, known)
