"""What may reach a detector: each record is decoded, checked and put in order, or gets a class and a reason.

One NaN, infinity or 1e300 blinds ADWIN for good and without an exception, so this gate is all there is between a
sensor's mistake and a detector that never fires again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.activity import (
    CHANNEL_NAMES,
    CHANNELS,
    MAX_MESSAGE_BYTES,
    MAX_READINGS_PER_MESSAGE,
    Reading,
    ReadingBatch,
    field_of,
)
from schemas.errors import Reject
from streams.windows import LABEL_CODES, Floats, Readings, complete_gravity

# A clock that is ahead would make every later reading of the device look old.
MAX_AHEAD_S: Final = 24 * 3600.0

_LOW: Final = np.array([channel.low for channel in CHANNELS])
_HIGH: Final = np.array([channel.high for channel in CHANNELS])
_REQUIRED: Final = np.array([channel.required for channel in CHANNELS])
_channels: Final = attrgetter(*map(field_of, CHANNEL_NAMES))
_decode_reading: Final = msgspec.json.Decoder(Reading).decode
_decode_batch: Final = msgspec.json.Decoder(ReadingBatch).decode


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as received. timestamp: its own, seconds since the epoch, None where it has none."""

    offset: int
    timestamp: float | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record, or some readings of a batch, cannot be used."""

    record: Record
    reject_class: str
    reason: str


@dataclass(slots=True)
class Decoded:
    """Readings of one device from a run of records, decoded but not yet checked. Row i came from records[source[i]]."""

    ts: list[float] = field(default_factory=list)
    rows: list[Sequence[float | None]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Passed:
    """What came through: readings in event-time order, what did not, and how many duplicates were dropped."""

    readings: Readings
    rejections: list[Rejection]
    duplicates: int


def decode(record: Record) -> Reading | ReadingBatch:
    """The message of a record. Raises Reject: encoding, syntax, schema, oversize or device-mismatch."""
    value = record.value
    if not value:
        raise Reject("syntax", "the value is empty")
    if len(value) > MAX_MESSAGE_BYTES:
        raise Reject("oversize", f"{len(value)} bytes; at most {MAX_MESSAGE_BYTES} a message")
    message: Reading | ReadingBatch
    try:
        message = _decode_reading(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = _decode_slowly(value)
    if record.key != message.device.encode():
        shown = None if record.key is None else record.key[:64].decode("ascii", "backslashreplace")
        raise Reject(
            "device-mismatch", f"key {shown!r} is not device {message.device!r}; the key decides the partition"
        )
    return message


def _decode_slowly(value: bytes) -> Reading | ReadingBatch:
    """A batch, or what is wrong with the value; Python's json reads the NaN, Infinity and 1e999 that JSON forbids."""
    try:
        return _decode_batch(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # what is wrong is told from the plain JSON
    try:
        plain = json.loads(value.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Reject("encoding", f"not UTF-8: {error.reason} at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        if value.startswith(b"\xef\xbb\xbf"):
            raise Reject("encoding", "begins with a byte order mark; send plain UTF-8") from None
        raise Reject("syntax", f"not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Reject("schema", f"expected an object, got {type(plain).__name__}")
    _check_lengths(plain)
    try:
        if isinstance(plain.get("ts"), list):
            return msgspec.convert(plain, ReadingBatch)
        return msgspec.convert(plain, Reading)
    except msgspec.ValidationError as error:
        raise Reject("schema", str(error)) from None
    except OverflowError:
        raise Reject("out-of-range", "a number is too large for a float") from None


def _check_lengths(plain: dict[str, Any]) -> None:
    ts = plain.get("ts")
    if isinstance(ts, list) and len(ts) > MAX_READINGS_PER_MESSAGE:
        raise Reject("oversize", f"{len(ts)} readings; at most {MAX_READINGS_PER_MESSAGE} a message")


def add(decoded: Decoded, message: Reading | ReadingBatch, source: int) -> None:
    """Append a message's readings. Raises Reject `schema` where a batch's arrays differ in length; then adds none."""
    if isinstance(message, Reading):
        decoded.ts.append(message.ts)
        decoded.rows.append(_channels(message))
        decoded.labels.append(LABEL_CODES[message.act])
        decoded.source.append(source)
        return
    count = len(message.ts)
    labels = [message.act] * count if not isinstance(message.act, list) else message.act
    columns = _channels(message)
    arrays = [("act", labels), ("seq", message.seq), *zip(CHANNEL_NAMES, columns, strict=True)]
    for name, column in arrays:
        if column is not None and len(column) != count:
            raise Reject("schema", f"{name} has {len(column)} values, ts has {count}; arrays must be equally long")
    absent = [None] * count
    decoded.rows += zip(*(absent if column is None else column for column in columns), strict=True)
    decoded.ts += message.ts
    decoded.labels += [LABEL_CODES[label] for label in labels]
    decoded.source += [source] * count


def check(decoded: Decoded, records: Sequence[Record], last_ts: float, recent: Readings) -> Passed:
    """The readings that may be used, given the device's last accepted event time and its buffered readings.

    A reading not later than one already accepted is dropped as a duplicate if `recent` or this run holds the same
    values at that time, and rejected as out-of-order otherwise.
    """
    ts = np.array(decoded.ts, np.float64)
    given = np.array([[value is not None for value in row] for row in decoded.rows], bool)
    values = np.array(decoded.rows, np.float64)  # None becomes NaN
    offsets = np.array([records[index].offset for index in decoded.source], np.int64)
    labels = np.array(decoded.labels, np.int64)
    rejections: dict[int, Rejection] = {}
    also: dict[int, int] = {}

    def reject(row: int, reject_class: str, reason: str) -> None:
        source = decoded.source[row]
        if source in rejections:
            also[source] = also.get(source, 0) + 1
        else:
            rejections[source] = Rejection(records[source], reject_class, reason)

    good = _finite_and_in_range(ts, values, given, decoded, records, reject)
    values = complete_gravity(values)
    # Later than every good reading before it: the running maximum over good readings is the last accepted time.
    highest = np.maximum.accumulate(np.concatenate([[last_ts], np.where(good, ts, -np.inf)]))[:-1]
    fresh = good & (ts > highest)
    duplicates = 0
    stale = np.flatnonzero(good & ~fresh)
    if len(stale):
        known = dict(zip(recent.ts.tolist(), recent.values, strict=True))
        known |= {float(ts[row]): values[row] for row in np.flatnonzero(fresh)}
        for row in stale.tolist():
            same = known.get(float(ts[row]))
            if same is not None and np.array_equal(same, values[row], equal_nan=True):
                duplicates += 1
            else:
                reject(row, "out-of-order", f"ts {ts[row]:.3f} is not after {highest[row]:.3f}, already accepted")
    readings = Readings(ts[fresh], values[fresh], labels[fresh], offsets[fresh])
    return Passed(
        readings, [_counted(rejections[source], also.get(source, 0)) for source in sorted(rejections)], duplicates
    )


def _finite_and_in_range(
    ts: Floats, values: Floats, given: NDArray[np.bool_], decoded: Decoded, records: Sequence[Record], reject: Any
) -> NDArray[np.bool_]:
    finite = np.isfinite(values)
    absent = ~given
    with np.errstate(invalid="ignore"):
        inside = (values >= _LOW) & (values <= _HIGH)
    good: NDArray[np.bool_] = np.isfinite(ts) & (inside | (absent & ~_REQUIRED)).all(1)
    stamps = [records[index].timestamp for index in decoded.source]
    limit = np.array([np.inf if stamp is None else stamp + MAX_AHEAD_S for stamp in stamps])
    good &= (ts <= limit) & (ts >= 0)
    for row in np.flatnonzero(~good).tolist():
        bad_value = np.flatnonzero(given[row] & ~finite[row])
        out = np.flatnonzero(given[row] & finite[row] & ~inside[row])
        if not np.isfinite(ts[row]):
            reject(row, "not-finite", "ts")
        elif len(bad_value):
            reject(row, "not-finite", CHANNEL_NAMES[bad_value[0]])
        elif len(out):
            channel = CHANNELS[out[0]]
            value = values[row, out[0]]
            reject(
                row,
                "out-of-range",
                f"{channel.name} {value:g} is not in {channel.low:g} to {channel.high:g} {channel.unit}",
            )
        else:
            reject(row, "out-of-range", f"ts {ts[row]:.3f} is negative or more than a day ahead of its record")
    return good


def _counted(rejection: Rejection, more: int) -> Rejection:
    if not more:
        return rejection
    return Rejection(
        rejection.record, rejection.reject_class, f"{rejection.reason} (and {more} more readings of this batch)"
    )
