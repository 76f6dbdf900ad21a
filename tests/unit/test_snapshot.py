"""The windows of a training, kept beside its run."""

import numpy as np
import pytest

from schemas.errors import Reject
from streams.simulator import simulate
from streams.windows import NO_LABEL, Readings, cut
from workers.dataset import Piece, anchor_sample
from workers.evaluation import split
from workers.snapshot import decode, encode
from workers.training import bouts_of


@pytest.fixture(scope="module")
def pieces():
    found = []
    for played in simulate(2, 120.0, 3, 1.7e9):
        windows = cut(Readings(played.ts, played.values, played.labels, np.arange(len(played))))[0]
        windows = windows.chosen(windows.labels != NO_LABEL)
        devices = np.full(len(windows), played.device)
        chosen = split(windows.labels, devices, windows.start, 0)
        bouts = bouts_of(windows.labels, devices, windows.start)
        found.append(
            Piece(windows.values, windows.labels, bouts, devices, windows.start, chosen.train, chosen.held_out)
        )
    found[1].values[:, :, 6:9] = np.nan  # a device without rotationRate
    return found


def test_what_was_kept_comes_back_to_the_last_bit(pieces):
    """A repetition on other bytes proves nothing."""
    again = decode(encode(pieces))
    assert len(again) == len(pieces)
    for old, new in zip(pieces, again, strict=True):
        for name in Piece.__slots__:
            before, after = getattr(old, name), getattr(new, name)
            assert before.shape == after.shape
            assert np.array_equal(before, after, equal_nan=name == "values"), name


def test_half_of_each_window_is_its_neighbours_and_is_stored_once(pieces):
    """Every version keeps its windows for ever."""
    assert len(encode(pieces)) < 0.7 * sum(piece.values.nbytes for piece in pieces)


def test_nothing_kept_is_nothing(pieces):
    """The first model has no anchor."""
    assert decode(encode([])) == []


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_no_snapshot_is_refused(content):
    """Somebody else's file, or half of ours, must not be trained on."""
    with pytest.raises(Reject, match="snapshot"):
        decode(content)


def test_an_anchor_is_a_sample_of_whole_bouts_that_keeps_every_activity_and_what_was_held_out(pieces):
    """It bounds what a training costs; a held-out window that slipped into training would flatter the next model."""
    whole = sum(map(len, pieces))
    sample = anchor_sample(pieces, whole // 2, 0)
    assert whole // 3 < sum(map(len, sample)) < whole
    kinds = [set(np.concatenate([each.labels for each in group]).tolist()) for group in (pieces, sample)]
    assert kinds[0] == kinds[1]
    held = [
        {
            (device, start)
            for each in group
            for device, start in zip(
                each.devices[each.held_out].tolist(), each.starts[each.held_out].tolist(), strict=True
            )
        }
        for group in (pieces, sample)
    ]
    assert held[1] <= held[0]
    assert anchor_sample(pieces, whole, 0) == pieces
