"""What may reach a detector: each record is decoded, checked and put in order, or gets a class and a reason.

One NaN, infinity or 1e300 blinds ADWIN for good and without an exception, so this gate is all there is between a
sensor's mistake and a detector that never fires again.
"""

from __future__ import annotations

import json
import math
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
# The end of year 9999: later times cannot be written as a date, and a record's own timestamp is its sender's to choose.
MAX_TS: Final = 253_402_300_799.0
# A sender that is not sure sends its last message again: as many readings are known again as one message may hold.
KNOWN_READINGS: Final = MAX_READINGS_PER_MESSAGE

_LOW: Final = np.array([channel.low for channel in CHANNELS])
_HIGH: Final = np.array([channel.high for channel in CHANNELS])
_REQUIRED: Final = np.array([channel.required for channel in CHANNELS])
_ODD: Final = np.random.default_rng(0).integers(1, 2**63, len(CHANNELS) + 1, dtype=np.uint64) | np.uint64(1)
_channels: Final = attrgetter(*map(field_of, CHANNEL_NAMES))
_decode_reading: Final = msgspec.json.Decoder(Reading).decode
_decode_batch: Final = msgspec.json.Decoder(ReadingBatch).decode


Prints = NDArray[np.uint32]


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
    """What came through: readings in event-time order, what did not, and how many duplicates were dropped.

    known: the device's next `known`.
    """

    readings: Readings
    rejections: list[Rejection]
    duplicates: int
    known: Prints


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
    encoding = json.detect_encoding(value)  # a byte order mark, or UTF-16 and UTF-32 by where their zeros are
    if encoding != "utf-8":
        raise Reject("encoding", f"looks like {encoding}; send UTF-8 without a byte order mark")
    try:
        return _decode_batch(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # what is wrong is told from the plain JSON
    try:
        plain = json.loads(value.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Reject("encoding", f"not UTF-8: {error.reason} at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise Reject("syntax", f"not JSON: {error}") from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise Reject("out-of-range", "a number of thousands of digits") from None
    if not isinstance(plain, dict):
        raise Reject("schema", f"expected an object, got {type(plain).__name__}")
    _check_lengths(plain)
    message: Reading | ReadingBatch
    try:
        if isinstance(plain.get("ts"), list):
            message = msgspec.convert(plain, ReadingBatch)
        else:
            message = msgspec.convert(plain, Reading)
    except msgspec.ValidationError as error:
        reason = str(error)
        raise Reject("out-of-range" if reason.startswith("Number out of range") else "schema", reason) from None
    except UnicodeEncodeError:  # msgspec looks at a string, to compare it or to tell what it is instead
        raise Reject("encoding", "a string holds half a surrogate pair, which no UTF-8 can carry") from None
    for name in ("weight", "height", "age"):
        if not math.isfinite(getattr(message, name) or 0.0):
            raise Reject("not-finite", name)
    return message


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


def nothing_known() -> Prints:
    """The `known` of a device that has sent nothing yet."""
    return np.empty(0, np.uint32)


def accept(decoded: Decoded, records: Sequence[Record], last_ts: float, known: Prints) -> Passed:
    """The readings that may be used, given the device's last accepted event time and its last readings' fingerprints.

    A reading not later than one already accepted is dropped as a duplicate if it is one of the KNOWN_READINGS accepted
    before it, time and values, and rejected as out-of-order otherwise. Which of both does not depend on the runs.
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
    prints = _prints(ts, values)
    # Later than every good reading before it: the running maximum over good readings is the last accepted time.
    highest = np.maximum.accumulate(np.concatenate([[last_ts], np.where(good, ts, -np.inf)]))[:-1]
    fresh = good & (ts > highest)
    duplicates = 0
    stale = np.flatnonzero(good & ~fresh)
    accepted = np.concatenate([known, prints[fresh]])
    if len(stale):
        before = len(known) + np.cumsum(fresh)
        for row in stale.tolist():
            end = int(before[row])
            if (accepted[max(0, end - KNOWN_READINGS) : end] == prints[row]).any():
                duplicates += 1
            else:
                reject(row, "out-of-order", f"ts {ts[row]:.3f} is not after {highest[row]:.3f}, already accepted")
    readings = Readings(ts[fresh], complete_gravity(values[fresh]), labels[fresh], offsets[fresh])
    return Passed(
        readings,
        [_counted(rejections[source], also.get(source, 0)) for source in sorted(rejections)],
        duplicates,
        accepted[-KNOWN_READINGS:],
    )


def _prints(ts: Floats, values: Floats) -> Prints:
    """(n,) 32 bits that tell a reading from a device's others; only a late one is ever looked up (multiply-shift)."""
    columns = np.column_stack([ts, np.where(np.isnan(values), 1e9, values)]) + 0.0  # -0.0 is 0.0
    bits = columns.view(np.uint64)
    mixed: NDArray[np.uint64] = ((bits ^ (bits >> np.uint64(29))) * _ODD).sum(1, dtype=np.uint64)
    return (mixed >> np.uint64(32)).astype(np.uint32)


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
    good &= (ts <= np.minimum(limit, MAX_TS)) & (ts >= 0)
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
            reject(row, "out-of-range", f"ts {ts[row]:.13g} is negative or more than a day ahead of its record")
    return good


def _counted(rejection: Rejection, more: int) -> Rejection:
    if not more:
        return rejection
    return Rejection(
        rejection.record, rejection.reject_class, f"{rejection.reason} (and {more} more readings of this batch)"
    )
