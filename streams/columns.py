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
    simdjson = None  # type: ignore[assignment]

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
            size = memoryview(ts).nbytes
            channels, arrays = [], 1
            for name in CHANNEL_NAMES:
                needed = name in _REQUIRED
                column: Any = document[name] if needed or name in present else None
                if needed or column is not None:
                    column = column.as_buffer(of_type="d")
                    arrays += 1
                channels.append(column)
            if "seq" in present and document["seq"] is not None:
                channels.append(document["seq"].as_buffer(of_type="i"))
                arrays += 1
        except Exception as error:  # of which kind simdjson does not say; `decode` will
            raise NotColumns from error
        count = size // 8
        equal = all(memoryview(column).nbytes == size for column in channels if column is not None)
        if isinstance(others.act, list):
            equal, arrays = equal and len(others.act) == count, arrays + 1
        sure = len(keys) == len(present) and value.count(b"[") == arrays
        if not (equal and sure and 0 < count <= MAX_READINGS_PER_MESSAGE):
            raise NotColumns
        return Columns(others.device, others.act, count, ts, channels[: len(CHANNEL_NAMES)])

    return read
