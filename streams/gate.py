"""What may reach a detector: a chunk of records is decoded and checked as columns, or gets a class and a reason.

One NaN, infinity or 1e300 blinds ADWIN for good and without an exception, so this gate is all there is between a
sensor's mistake and a detector that never fires again.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, itemgetter
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
from streams.columns import Columns, NotColumns, reader
from streams.records import Chunk, Record
from streams.windows import LABEL_CODES, Floats, Ints

# A clock that is ahead would make every later reading of the device look old.
MAX_AHEAD_S: Final = 24 * 3600.0
# Beyond this, a device whose clock has been set right is believed: what it sent ahead of time is no measure any more.
CLOCK_AHEAD_S: Final = 300.0
# The end of year 9999: later times cannot be written as a date, and a record's own timestamp is its sender's to choose.
MAX_TS: Final = 253_402_300_799.0
# A sender that is not sure sends its last message again: as many readings are known again as one message may hold.
KNOWN_READINGS: Final = MAX_READINGS_PER_MESSAGE

_LOW: Final = np.array([channel.low for channel in CHANNELS])
_HIGH: Final = np.array([channel.high for channel in CHANNELS])
_ODD: Final = np.random.default_rng(0).integers(1, 2**63, len(CHANNELS) + 1, dtype=np.uint64) | np.uint64(1)
_CHANNEL_FIELDS: Final = tuple(map(field_of, CHANNEL_NAMES))
_REQUIRED_FIELDS: Final = {field_of(channel.name) for channel in CHANNELS if channel.required}


def _row_struct() -> type[msgspec.Struct]:
    """`Reading` as it is decoded by the thousand: absent channels are NaN, and nothing is looked at twice.

    The device's name is checked once a chunk, not by a pattern at each reading; JSON's null for a channel, which no
    row can hold, is left to `Reading`. The numbers stand together, behind the device: half the time to get them out.
    """
    fields: list[Any] = []
    known = msgspec.structs.fields(Reading)
    for item in sorted(known, key=lambda item: item.name not in ("device", "ts", *_CHANNEL_FIELDS)):
        if item.name == "device":
            fields.append((item.name, str))
        elif item.name in _CHANNEL_FIELDS and item.name not in _REQUIRED_FIELDS:
            fields.append((item.name, float, math.nan))
        else:
            fields.append((item.name, item.type) if item.required else (item.name, item.type, None))
    names = {item.name: item.encode_name for item in known}
    return msgspec.defstruct("Row", fields, rename=names, gc=False)


_Row: Final = _row_struct()
_NUMBERS: Final = slice(1, 2 + len(CHANNELS))
_ORDER: Final = [_Row.__struct_fields__[_NUMBERS].index(name) for name in _CHANNEL_FIELDS]
_numbers: Final = itemgetter(_NUMBERS)
_pack: Final = struct.Struct(f"{1 + len(CHANNELS)}d").pack  # of Python's floats faster than anything of NumPy's
_channels: Final = attrgetter(*_CHANNEL_FIELDS)
_decode_row: Final = msgspec.json.Decoder(_Row).decode
_decode_reading: Final = msgspec.json.Decoder(Reading).decode
_decode_batch: Final = msgspec.json.Decoder(ReadingBatch).decode
_NO_MESSAGE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NO_NUMBER: Final = struct.pack("d", math.nan)
_valid_name: Final = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_OBJECT: Final = ord("{")

Prints = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record, or some readings of a batch, cannot be used."""

    record: Record
    reject_class: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """n readings of a chunk, decoded but not yet checked, in the records' order.

    device: (n,) code of the device. source: (n,) index of the record that carried it. ts: (n,) and values: (n, 12), as
    in `streams.windows.Readings`, but for what is not finite: an absent channel is NaN, and one that is there infinite.
    """

    device: Ints
    source: Ints
    ts: Floats
    values: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.ts)


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
    except _NO_MESSAGE:
        message = _decode_slowly(value)
    if record.key != message.device.encode():
        shown = None if record.key is None else record.key[:64].decode("ascii", "backslashreplace")
        raise Reject(
            "device-mismatch", f"key {shown!r} is not device {message.device!r}; the key decides the partition"
        )
    if isinstance(message, ReadingBatch):
        _check_columns(message)
    return message


def _decode_slowly(value: bytes) -> Reading | ReadingBatch:
    """A batch, or what is wrong with the value; Python's json reads the NaN, Infinity and 1e999 that JSON forbids."""
    if value[0] != _OBJECT or 0 in value[:4]:
        encoding = json.detect_encoding(value)  # a byte order mark, or UTF-16 and UTF-32 by where their zeros are
        if encoding != "utf-8":
            raise Reject("encoding", f"looks like {encoding}; send UTF-8 without a byte order mark")
    try:
        plain = _plain(value)
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


def _plain(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (*_NO_MESSAGE, ValueError):
        return json.loads(value.decode("utf-8"))  # reads what no JSON may hold, and is ten times as slow


def _check_lengths(plain: dict[str, Any]) -> None:
    ts = plain.get("ts")
    if isinstance(ts, list) and len(ts) > MAX_READINGS_PER_MESSAGE:
        raise Reject("oversize", f"{len(ts)} readings; at most {MAX_READINGS_PER_MESSAGE} a message")


def _check_columns(batch: ReadingBatch) -> None:
    count = len(batch.ts)
    labels = batch.act if isinstance(batch.act, list) else None
    columns = [("act", labels), ("seq", batch.seq), *zip(CHANNEL_NAMES, _channels(batch), strict=True)]
    for name, column in columns:
        if column is not None and len(column) != count:
            raise Reject("schema", f"{name} has {len(column)} values, ts has {count}; arrays must be equally long")


def decode_chunk(chunk: Chunk, codes: dict[str, int]) -> tuple[Rows, list[Rejection]]:
    """All readings of a chunk, and the records that hold none that can be read. codes: names a device's code.

    `codes` is asked for the code of each valid device name (its `__missing__` may make one).
    """
    decoded, unsure = _decoded(chunk)
    if not unsure:
        return _rows_of(type(decoded[0]) if decoded else _Row, decoded, np.arange(len(decoded)), codes), []
    rejections: list[Rejection] = []
    others: dict[Any, list[tuple[int, Any]]] = {Reading: [], ReadingBatch: []}
    for index in unsure:
        decoded[index] = None
        record = chunk.record(index)
        try:
            message = decode(record)
        except Reject as reject:
            rejections.append(Rejection(record, reject.reject_class, reject.reason))
        else:
            others[type(message)].append((index, message))
    sure = [item for item in decoded if item is not None]
    kind = type(sure[0]) if sure else _Row
    parts = [_rows_of(kind, sure, np.delete(np.arange(len(decoded)), unsure), codes)]
    for kind, found in others.items():
        if found:
            parts.append(_rows_of(kind, [message for _, message in found], np.array([at for at, _ in found]), codes))
    return parts[0] if len(parts) == 1 else _joined(parts), rejections


def _decoded(chunk: Chunk) -> tuple[list[Any], list[int]]:
    """Each record that certainly is one as a `_Row`, or each as a batch; the indices at which `decode` has to look."""
    decoded, unsure = _by_the_thousand(chunk.values)
    looked = set(unsure)
    if max(map(len, filter(None, chunk.values)), default=0) > MAX_MESSAGE_BYTES:
        looked.update(index for index, value in enumerate(chunk.values) if len(value or b"") > MAX_MESSAGE_BYTES)
    sure: Sequence[int] = range(len(decoded))
    keys = chunk.keys
    if looked:
        sure = [index for index in sure if index not in looked]
        keys = [keys[index] for index in sure]
    names = [decoded[index].device for index in sure] if looked else [item.device for item in decoded]
    different = {name: name.encode() for name in set(names)}
    invalid = {name for name in different if not _valid_name(name)}
    if invalid or [different[name] for name in names] != keys:
        looked.update(
            index for index, name, key in zip(sure, names, keys, strict=True) if name in invalid or name.encode() != key
        )
    return decoded, sorted(looked)


def _by_the_thousand(values: Sequence[bytes | None]) -> tuple[list[Any], list[int]]:
    """Each value as a `_Row`, or each as a batch, as the first that is one; and the indices of those that are not."""
    shape = _shape_of(values)
    decoded: list[Any] = []
    others: list[int] = []
    left = iter(values)
    while len(decoded) < len(values):
        try:
            decoded.extend(map(shape, left))  # keeps what came before an exception
        except (*_NO_MESSAGE, NotColumns, TypeError):
            others.append(len(decoded))
            decoded.append(None)
    if shape is _decode_batch:
        others += [index for index, item in enumerate(decoded) if item is not None and not _equally_long(item)]
    return decoded, others


def _shape_of(values: Sequence[bytes | None]) -> Callable[[Any], Any]:
    shapes: tuple[Callable[[Any], Any], ...] = (_decode_row, reader() or _decode_batch)
    for value in filter(None, values):
        for shape in shapes:
            try:
                shape(value)
            except (*_NO_MESSAGE, NotColumns):
                continue
            return shape
    return _decode_row


def _rows_of(kind: Any, items: Sequence[Any], source: Ints, codes: dict[str, int]) -> Rows:
    if kind is Columns:
        return _rows_of_columns(items, source, codes)
    if kind is ReadingBatch:
        return _rows_of_batches(items, source, codes)
    return _rows_of_singles(items, source, codes) if kind is _Row else _rows_of_readings(items, source, codes)


def _equally_long(batch: ReadingBatch) -> bool:
    lengths = {len(column) for column in (batch.ts, batch.seq, *_channels(batch)) if column is not None}
    return len(lengths) == 1 and (not isinstance(batch.act, list) or len(batch.act) in lengths)


def _rows_of_singles(rows: Sequence[Any], source: Ints, codes: dict[str, int]) -> Rows:
    count = len(rows)
    packed = [_pack(*numbers) for numbers in map(_numbers, map(msgspec.structs.astuple, rows))]
    flat = np.frombuffer(b"".join(packed)).reshape(count, 1 + len(CHANNELS))
    return Rows(
        _integers(map(codes.__getitem__, [row.device for row in rows]), count),
        source,
        flat[:, 0],
        flat[:, _ORDER],
        _integers(map(LABEL_CODES.__getitem__, [row.act for row in rows]), count),
    )


def rows_of(readings: Sequence[Reading], codes: dict[str, int]) -> Rows:
    """Readings that were decoded elsewhere; each is a record of its own."""
    return _rows_of_readings(readings, np.arange(len(readings)), codes)


def _rows_of_readings(readings: Sequence[Reading], source: Ints, codes: dict[str, int]) -> Rows:
    count = len(readings)
    channels = np.array([_channels(item) for item in readings], object)
    return Rows(
        _integers((codes[item.device] for item in readings), count),
        source,
        np.array([item.ts for item in readings], np.float64),
        _with_absent(channels.reshape(count, len(CHANNELS))),
        _integers((LABEL_CODES[item.act] for item in readings), count),
    )


def _with_absent(values: NDArray[np.object_]) -> Floats:
    absent = values == None  # noqa: E711 - element by element
    found = np.where(absent, 0.0, values).astype(np.float64)
    return np.where(absent, np.nan, np.where(np.isnan(found), np.inf, found))


def _rows_of_batches(batches: Sequence[ReadingBatch], source: Ints, codes: dict[str, int]) -> Rows:
    counts = [len(batch.ts) for batch in batches]
    count = sum(counts)
    values = np.empty((len(CHANNELS), count))
    for row, name in enumerate(_CHANNEL_FIELDS):
        columns = [getattr(batch, name) for batch in batches]
        if name in _REQUIRED_FIELDS or None not in columns:
            values[row] = _present(columns, count)
        else:
            values[row] = np.concatenate(
                [
                    np.full(length, np.nan) if column is None else _present([column], length)
                    for column, length in zip(columns, counts, strict=True)
                ]
            )
    ts = np.fromiter(chain.from_iterable(batch.ts for batch in batches), np.float64, count)
    return _joined_batches(batches, counts, source, codes, ts, values)


def _rows_of_columns(batches: Sequence[Columns], source: Ints, codes: dict[str, int]) -> Rows:
    counts = [batch.count for batch in batches]
    values = np.empty((len(CHANNELS), sum(counts)))
    for row in range(len(CHANNELS)):
        columns = (batch.channels[row] for batch in batches)
        values[row] = np.frombuffer(
            b"".join(
                _NO_NUMBER * length if column is None else column
                for column, length in zip(columns, counts, strict=True)
            )
        )
    ts = np.frombuffer(b"".join(batch.ts for batch in batches))
    return _joined_batches(batches, counts, source, codes, ts, values)


def _joined_batches(
    batches: Sequence[Any], counts: Sequence[int], source: Ints, codes: dict[str, int], ts: Floats, values: Floats
) -> Rows:
    """values: (12, n)."""
    labels = chain.from_iterable(
        map(LABEL_CODES.__getitem__, batch.act) if isinstance(batch.act, list) else [LABEL_CODES[batch.act]] * count
        for batch, count in zip(batches, counts, strict=True)
    )
    return Rows(
        np.repeat(_integers((codes[batch.device] for batch in batches), len(batches)), counts),
        np.repeat(source, counts),
        ts,
        values.T,
        _integers(labels, len(ts)),
    )


def _present(columns: Sequence[Sequence[float]], count: int) -> Floats:
    """Columns that are there, one after the other: NaN, which Python's json reads, is not finite, but not absent."""
    found = np.frombuffer(struct.pack(f"{count}d", *chain.from_iterable(columns)))
    return np.where(np.isnan(found), np.inf, found)


def _integers(values: Iterable[int], count: int) -> Ints:
    return np.fromiter(values, np.int64, count)


def _joined(parts: Sequence[Rows]) -> Rows:
    order = np.argsort(np.concatenate([part.source for part in parts]), kind="stable")
    return Rows(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in Rows.__slots__))


def usable(ts: Floats, values: Floats, stamps: Ints) -> NDArray[np.bool_]:
    """(n,) whether a reading is finite, in range, and not far ahead of its record. stamps: (n,) ms, or NO_TIMESTAMP."""
    limit = np.where(stamps < 0, MAX_TS, np.minimum(stamps / 1000 + MAX_AHEAD_S, MAX_TS))
    outside = ((values < _LOW) | (values > _HIGH)).any(1)  # an absent channel is neither
    good: NDArray[np.bool_] = ~outside & (ts >= 0) & (ts <= limit)  # NaN is neither
    return good


def why_unusable(ts: float, values: Floats) -> tuple[str, str]:
    """Class and reason of a reading that is not `usable`; values: (12,)."""
    if not math.isfinite(ts):
        return "not-finite", "ts"
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        return "not-finite", CHANNEL_NAMES[infinite[0]]
    out = np.flatnonzero((values < _LOW) | (values > _HIGH))
    if len(out):
        channel, value = CHANNELS[out[0]], values[out[0]]
        return (
            "out-of-range",
            f"{channel.name} {value:g} is not in {channel.low:g} to {channel.high:g} {channel.unit}",
        )
    return "out-of-range", f"ts {ts:.13g} is negative or more than a day ahead of its record"


def in_order(
    ts: Floats, good: NDArray[np.bool_], prints: Prints, stamps: Ints, last_ts: float, known: Prints
) -> tuple[NDArray[np.bool_], Ints, Floats]:
    """One device's readings that are later than the one accepted before them; those that are neither that nor known;
    and the time of the last one accepted before each, all (n,) but the second. stamps: as `usable` takes them.

    A reading not later than the last one accepted is a duplicate if it is one of the KNOWN_READINGS accepted before it,
    time and values, and out of order otherwise; but if that last one lies in the future by the clock of Kafka's record
    and it does not, the device's clock has been set right, and it is accepted. Which it is does not depend on the
    chunks.
    """
    fresh, late, highest = _in_order(ts, good, prints, last_ts, known)
    now = np.where(stamps < 0, np.inf, stamps / 1000 + CLOCK_AHEAD_S)
    if ((ts[late] <= now[late]) & (highest[late] > now[late])).any():
        return _one_by_one(ts, good, prints, now, last_ts, known)
    return fresh, late, highest


def _one_by_one(
    ts: Floats, good: NDArray[np.bool_], prints: Prints, now: Floats, last_ts: float, known: Prints
) -> tuple[NDArray[np.bool_], Ints, Floats]:
    """In linear time however often a clock jumps."""
    fresh, late, before = np.zeros(len(ts), np.bool_), [], np.empty(len(ts))
    accepted = {value: number for number, value in enumerate(known.tolist())}
    count = len(known)
    columns = zip(ts.tolist(), good.tolist(), prints.tolist(), now.tolist(), strict=True)
    for row, (at, usable_, value, limit) in enumerate(columns):
        before[row] = last_ts
        if not usable_:
            continue
        if at <= last_ts:
            if accepted.get(value, -1) >= max(count - KNOWN_READINGS, 0):
                continue
            if not at <= limit < last_ts:
                late.append(row)
                continue
        fresh[row], last_ts, accepted[value] = True, at, count
        count += 1
    return fresh, np.array(late, np.int64), before


def _in_order(
    ts: Floats, good: NDArray[np.bool_], prints: Prints, last_ts: float, known: Prints
) -> tuple[NDArray[np.bool_], Ints, Floats]:
    """The same where no clock is set right."""
    # Later than every good reading before it: the running maximum over good readings is the last accepted time.
    highest = np.maximum.accumulate(np.concatenate([[last_ts], np.where(good, ts, -np.inf)]))[:-1]
    fresh = good & (ts > highest)
    late = np.flatnonzero(good & ~fresh)
    if len(late):
        accepted = np.concatenate([known, prints[fresh]]).astype(np.int64)
        before = (len(known) + np.cumsum(fresh))[late]
        # All prints in order, those that are the same by when they were accepted: the last such before each late one.
        ordered = np.sort(accepted << 31 | np.arange(len(accepted)))
        sought = prints[late].astype(np.int64) << 31
        latest = np.append(ordered, -1)[np.searchsorted(ordered, sought | before) - 1] - sought
        late = late[latest < np.maximum(before - KNOWN_READINGS, 0)]
    return fresh, late, highest


def prints_of(ts: Floats, values: Floats) -> Prints:
    """(n,) 32 bits that tell a reading from a device's others; only a late one is ever looked up (multiply-shift)."""
    columns = np.empty((len(ts), 1 + values.shape[1]))
    columns[:, 0], columns[:, 1:] = ts, values
    columns += 0.0  # -0.0 is 0.0
    bits = columns.view(np.uint64)
    bits ^= bits >> np.uint64(29)
    bits *= _ODD
    mixed: NDArray[np.uint64] = bits.sum(1, dtype=np.uint64)
    return (mixed >> np.uint64(32)).astype(np.uint32)
