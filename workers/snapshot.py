"""The windows that a training has seen, as Parquet beside its run: the very same bytes long after Kafka's retention.

Neighbouring windows share half their readings, which are stored once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from schemas.errors import Reject
from streams.windows import HOP, WINDOW
from workers.dataset import Piece

RECENT: Final = "recent.parquet"
ANCHOR: Final = "anchor.parquet"
_CHANNELS: Final = 12
_VERSION: Final = b"driftloop/windows/1"


def encode(pieces: Sequence[Piece]) -> bytes:
    """Windows of the pieces, in order; to the last bit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    half = pa.list_(pa.float64())
    columns: dict[str, list[Any]] = {"piece": [], "first": [], "second": []}
    for number, piece in enumerate(pieces):
        firsts, seconds = np.split(piece.values.reshape(len(piece.values), -1), [HOP * _CHANNELS], axis=1)
        same = np.zeros(len(firsts), np.bool_)
        if len(firsts):
            same[1:] = (firsts[1:].view(np.int64) == seconds[:-1].view(np.int64)).all(1)
        columns["piece"].append(np.full(len(firsts), number, np.int32))
        columns["first"] += [None if known else row for known, row in zip(same.tolist(), firsts, strict=True)]
        columns["second"] += list(seconds)
    names = ("labels", "bouts", "devices", "starts", "train", "held_out")
    table = pa.table(
        {
            "piece": np.concatenate([np.empty(0, np.int32), *columns["piece"]]),
            **{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names},
            "first": pa.array(columns["first"], half),
            "second": pa.array(columns["second"], half),
        }
        if pieces
        else {}
    ).replace_schema_metadata({b"format": _VERSION})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def decode(content: bytes) -> list[Piece]:
    """The pieces again. Raises Reject `schema` for what is no such snapshot."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise Reject("schema", f"the snapshot is no Parquet file: {error}") from error
    if (table.schema.metadata or {}).get(b"format") != _VERSION:
        raise Reject("schema", f"the snapshot's format is not {_VERSION.decode()}")
    if not len(table):
        return []
    missing = table["first"].is_null().to_numpy()
    seconds = _rows(table["second"])
    firsts = np.empty_like(seconds)
    firsts[~missing] = _rows(table["first"].drop_null())
    firsts[missing] = seconds[np.flatnonzero(missing) - 1]
    values = np.concatenate([firsts, seconds], axis=1).reshape(-1, WINDOW, _CHANNELS)
    number = table["piece"].to_numpy()

    def column(name: str) -> Any:
        return table[name].to_numpy()

    return [
        Piece(
            values[rows := number == each],
            column("labels")[rows],
            column("bouts")[rows],
            column("devices")[rows].astype(str),
            column("starts")[rows],
            column("train")[rows],
            column("held_out")[rows],
        )
        for each in np.unique(number)
    ]


def _rows(column: Any) -> Any:
    chunks = [np.asarray(chunk.flatten()) for chunk in column.chunks]
    return np.concatenate([np.empty(0), *chunks]).reshape(-1, HOP * _CHANNELS)
