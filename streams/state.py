"""One device's state as one value: what the agent must remember to go on as if nothing had happened.

Plain numbers through msgspec, never pickle: a value from a topic is data, not code. It is stamped with the format, the
river version and the detector's config; state with another stamp is not read, the device starts fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

import msgspec
import numpy as np

from schemas.activity import CHANNEL_NAMES
from schemas.errors import Stop
from streams.drift import Detector
from streams.intake import Buffered
from streams.windows import Floats, Readings

FORMAT: Final = 3
_RIVER: Final = version("river")
# Sensors write six decimals: then a value is an integer of half the bytes.
_DECIMALS: Final = 1e6


class _Stamped(msgspec.Struct, array_like=True):
    """What every format begins with, so that state of another one can still tell where it ends."""

    stamp: str
    last_offset: int
    last_ts: float | None


class _Saved(_Stamped, array_like=True):
    run: int
    ts: bytes
    absent: bytes
    whole: bytes
    whole_values: bytes
    other_values: bytes
    labels: bytes
    offsets: bytes
    known: bytes
    detector: Any


def stamp(detector: Detector) -> str:
    """What must be the same for saved state to be read."""
    return f"{FORMAT}/river {_RIVER}/{detector.config}"


def encode(buffered: Buffered, detector: Detector) -> bytes:
    """The state as bytes (msgpack)."""
    readings = buffered.readings
    absent = np.isnan(readings.values).all(0)
    with np.errstate(invalid="ignore"):
        decimals = np.rint(readings.values * _DECIMALS)
        whole = ~absent & ((decimals / _DECIMALS == readings.values) & (np.abs(decimals) < 2**31)).all(0)
    return msgspec.msgpack.encode(
        _Saved(
            stamp(detector),
            buffered.last_offset,
            buffered.last_ts if np.isfinite(buffered.last_ts) else None,
            buffered.run,
            readings.ts.tobytes(),
            absent.tobytes(),
            whole.tobytes(),
            decimals[:, whole].astype(np.int32).tobytes(),
            readings.values[:, ~whole & ~absent].tobytes(),
            readings.labels.astype(np.int8).tobytes(),
            readings.offsets.tobytes(),
            buffered.known.tobytes(),
            detector.dump(),
        )
    )


def decode(blob: bytes, fresh: Callable[[], Detector]) -> tuple[Buffered, Detector]:
    """The state of `encode`; with a fresh detector and no buffer, but the same last offset, if the stamp differs.

    Raises Stop if the bytes are none that `encode` could have written.
    """
    detector = fresh()
    try:
        stamped = msgspec.msgpack.decode(blob, type=_Stamped)
        last_ts = float("-inf") if stamped.last_ts is None else stamped.last_ts
        if stamped.stamp != stamp(detector):
            return Buffered(stamped.last_offset, last_ts), detector
        saved = msgspec.msgpack.decode(blob, type=_Saved)
        detector.load(saved.detector)
        readings = Readings(
            np.frombuffer(saved.ts, np.float64),
            _values(saved),
            np.frombuffer(saved.labels, np.int8).astype(np.int64),
            np.frombuffer(saved.offsets, np.int64),
        )
        known = np.frombuffer(saved.known, np.uint32)
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise Stop(f"a device's saved state cannot be read: {error}") from error
    return Buffered(saved.last_offset, last_ts, saved.run, readings, known), detector


def _values(saved: _Saved) -> Floats:
    absent, whole = np.frombuffer(saved.absent, np.bool_), np.frombuffer(saved.whole, np.bool_)
    values = np.full((len(saved.ts) // 8, len(CHANNEL_NAMES)), np.nan)
    values[:, whole] = np.frombuffer(saved.whole_values, np.int32).reshape(len(values), whole.sum()) / _DECIMALS
    other = ~whole & ~absent
    values[:, other] = np.frombuffer(saved.other_values, np.float64).reshape(len(values), other.sum())
    return values


def last_offset(blob: bytes) -> int:
    """The last record whose effects are in a saved state. Raises Stop if the bytes are none."""
    try:
        return msgspec.msgpack.decode(blob, type=_Stamped).last_offset
    except msgspec.DecodeError as error:
        raise Stop(f"a device's saved state cannot be read: {error}") from error
