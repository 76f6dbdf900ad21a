"""One device's state as one value."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from river._river_rust.drift import AdaptiveWindowing

from schemas.errors import Stop
from streams import state as device_state
from streams.adwin import restore
from streams.detectors import DETECTORS
from streams.intake import Buffered
from streams.simulator import simulate
from streams.state import decode, encode, last_offset
from streams.windows import Readings, cut

NOW = 1.7e9


def readings(seconds=90, seed=4):
    recording = simulate(1, seconds, seed=seed, start_ts=NOW)[0]
    return Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording)))


def fed(detector, seconds=90):
    """What a device has buffered, and a detector that has seen so many seconds."""
    kind = DETECTORS[detector]
    found = kind()
    windows, rest = cut(readings(seconds))
    found.observe(readings(seconds), replace(windows, measures=kind.measure(windows.values) if kind.measure else None))
    last_ts = float(readings(seconds).ts[-1])
    return Buffered(41, last_ts, 83, rest, np.arange(7, dtype=np.uint32)), found


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("seconds", [0.02, 90])
def test_state_comes_back_as_it_was(detector, seconds):
    """Bit for bit: a rounding here would be a drift that only restarts can see."""
    buffered, found = fed(detector, seconds)
    blob = encode(buffered, found)
    back, again = decode(blob, DETECTORS[detector])
    assert encode(back, again) == blob
    assert (back.last_offset, back.last_ts, back.run) == (41, buffered.last_ts, 83)
    for name in Readings.__slots__:
        np.testing.assert_array_equal(getattr(back.readings, name), getattr(buffered.readings, name))
    assert back.known.tolist() == list(range(7))
    assert last_offset(blob) == 41


@pytest.mark.parametrize("shape", ["six decimals", "any number", "absent", "now and then"])
def test_values_of_any_form_come_back_bit_for_bit(shape):
    """Six decimals take half the bytes; what has more, or is not there, must not be rounded or made up."""
    whole = readings()
    values = whole.values.copy()
    if shape == "any number":
        values += 1e-9
    if shape == "absent":
        values[:, 6:9] = np.nan
    if shape == "now and then":
        values[::7, 6:9] = np.nan
    buffered = replace(fed("raw")[0], readings=replace(whole, values=values))
    back, _ = decode(encode(buffered, DETECTORS["raw"]()), DETECTORS["raw"])
    np.testing.assert_array_equal(back.readings.values, values)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_fresh_device_comes_back_too(detector):
    """Nothing seen yet is a state as well; minus infinity has no JSON, but it has to have bytes."""
    back, _ = decode(encode(Buffered(), DETECTORS[detector]()), DETECTORS[detector])
    assert (back.last_offset, back.last_ts, len(back.readings)) == (-1, float("-inf"), 0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_encoding_does_not_change_the_state(detector):
    """A checkpoint is taken of a state that goes on."""
    state = fed(detector)
    assert encode(*state) == encode(*state)


@pytest.mark.parametrize("detector", DETECTORS)
def test_another_stamp_starts_fresh_but_keeps_the_place(detector, monkeypatch):
    """After an upgrade old numbers mean something else; old offsets still mean the same."""
    blob = encode(*fed(detector))
    monkeypatch.setattr(device_state, "_RIVER", "99.0")
    back, found = decode(blob, DETECTORS[detector])
    assert (back.last_offset, back.last_ts) == (41, fed(detector)[0].last_ts)
    assert len(back.readings) == len(back.known) == 0
    assert found.dump() == DETECTORS[detector]().dump()


@pytest.mark.parametrize("fields", [["1/river 0.1/raw/1", 41, NOW], ["4/river 9/x/1", 41, NOW, *range(30)]])
def test_a_format_with_more_or_fewer_fields_keeps_the_place(fields):
    """Formats to come, and those that were, differ behind the first three fields: no crash, no readings twice."""
    back, _ = decode(msgspec.msgpack.encode(fields), DETECTORS["confirmed"])
    assert (back.last_offset, back.last_ts) == (41, NOW)


@pytest.mark.parametrize("detector", DETECTORS)
def test_state_that_cannot_be_read_stops_the_process(detector):
    """Going on without it would report old drifts as new ones, and nobody would know."""
    blob = encode(*fed(detector))
    saved = msgspec.msgpack.decode(blob)
    broken = [b"", b"\xc1", b"{}", blob[:-5], msgspec.msgpack.encode([saved[0], 1]), b"\x80"]
    broken += [
        msgspec.msgpack.encode([*saved[:at], wrong, *saved[at + 1 :]]) for at in (4, 7, 12) for wrong in (b"abc", 7)
    ]
    for bad in broken:
        with pytest.raises(Stop, match="saved state"):
            decode(bad, DETECTORS[detector])


def test_a_window_that_was_saved_detects_what_it_would_have():
    """ADWIN's state is a histogram; one bucket off, and it alarms at another reading."""
    rng = np.random.default_rng(0)
    series = np.concatenate([rng.normal(0, 1, 900), rng.normal(1.5, 1, 900)])
    whole, moved = AdaptiveWindowing(), AdaptiveWindowing()
    for at, value in enumerate(series.tolist()):
        if at % 97 == 0:
            moved, old = AdaptiveWindowing(), moved
            restore(moved, old.__getstate__())
        assert whole.update(value) == moved.update(value)
    assert whole.get_n_detections() > 0


def test_a_windows_broken_bytes_stop_the_process():
    """river's Rust panics are no Exception, so they would pass every handler but this one."""
    with pytest.raises(Stop, match="saved state"):
        restore(AdaptiveWindowing(), b"\xff" * 7)
