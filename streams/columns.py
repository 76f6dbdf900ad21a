"""Batches read as columns of bytes, without a Python object for each of their numbers: a third of the time.

simdjson has no wheels for the newest Python; without it batches are read as lists, to the same readings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from schemas.activity import CHANNEL_NAMES, CHANNELS, MAX_READINGS_PER_MESSAGE, ReadingBatch

try:
    import simdjson
except ImportError:
    simdjson = None  # type: ignore[assignment]  # a module, where this Python has a wheel of it

_REQUIRED: Final = frozenset(channel.name for channel in CHANNELS if channel.required)
_ARRAYS: Final = {"ts", "seq", *CHANNEL_NAMES}


class NotColumns(Exception):
    """A value that is no batch, or one that has to be looked at more closely."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of `count` readings. ts and channels, in the order of CHANNEL_NAMES: doubles; None where absent."""

    device: str
    act: str | list[str | None] | None
    count: int
    ts: Any
    channels: list[Any]


def _others() -> type[msgspec.Struct]:
    """`ReadingBatch` without its arrays of numbers."""
    fields = [field for field in msgspec.structs.fields(ReadingBatch) if field.encode_name not in _ARRAYS]
    described: list[Any] = [
        (field.name, field.type) if field.required else (field.name, field.type, None) for field in fields
    ]
    return msgspec.defstruct("Others", described, rename={field.name: field.encode_name for field in fields}, gc=False)


_decode_others: Final = msgspec.json.Decoder(_others()).decode


def reader() -> Callable[[bytes], Columns] | None:
    """A function that reads a batch, for one thread at a time; None where simdjson is not installed.

    It takes what `ReadingBatch` takes, to the same numbers, and raises NotColumns for everything that is not certainly
    so: keys given twice, arrays in arrays, numbers that no 64 bits hold, brackets in a text.
    """
    if simdjson is None:
        return None
    parse = simdjson.Parser().parse

    def read(value: bytes) -> Columns:
        try:
            others: Any = _decode_others(value)
            document: Any = parse(value)
            keys = list(document)
            present = set(keys)
            ts = document["ts"].as_buffer(of_type="d")
            channels = []
            for name in CHANNEL_NAMES:
                needed = name in _REQUIRED
                column: Any = document[name] if needed or name in present else None
                channels.append(column.as_buffer(of_type="d") if needed or column is not None else None)
            seq: Any = document["seq"] if "seq" in present else None
            seq = None if seq is None else seq.as_buffer(of_type="i")
        except Exception as error:  # simdjson's are of many kinds; what is wrong, if anything, `decode` finds
            raise NotColumns from error
        sizes = [memoryview(column).nbytes for column in (ts, *channels, seq) if column is not None]
        count = sizes[0] // 8
        if isinstance(others.act, list):
            sizes.append(8 * len(others.act))
        sure = len(keys) == len(present) and value.count(b"[") == len(sizes)
        if not (sure and len(set(sizes)) == 1 and 0 < count <= MAX_READINGS_PER_MESSAGE):
            raise NotColumns
        return Columns(others.device, others.act, count, ts, channels)

    return read
