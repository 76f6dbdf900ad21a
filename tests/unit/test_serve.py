"""Readings that a client sends become exactly what the model was trained on, or an answer that names the field."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from schemas.activity import CHANNEL_NAMES, ROTATION, Reading, field_of
from schemas.errors import Reject
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.simulator import simulate
from streams.windows import HOP, WINDOW
from workers.serve import featurise

RECORDING = simulate(1, 12, 3, 1_700_000_000.0)[0]
FIELDS = [field_of(name) for name in CHANNEL_NAMES]


def readings(count: int = 300) -> list[Reading]:
    return [
        Reading(device="phone-01", ts=ts, **dict(zip(FIELDS, row, strict=True)))
        for ts, row in zip(RECORDING.ts[:count].tolist(), RECORDING.values[:count].tolist(), strict=True)
    ]


def changed(at: int, **fields: object) -> list[Reading]:
    sent = readings()
    sent[at] = msgspec.structs.replace(sent[at], **fields)
    return sent


def test_the_features_are_those_of_the_training():
    """A model asked with other features than it learned is wrong without anybody noticing."""
    starts, table = featurise(readings(300), FEATURES)
    windows = np.stack([RECORDING.values[first : first + WINDOW] for first in range(0, 300 - WINDOW + 1, HOP)])
    assert starts.tolist() == RECORDING.ts[: 300 - WINDOW + 1 : HOP].tolist()
    np.testing.assert_allclose(table, features(windows, FEATURES), rtol=1e-9, atol=1e-12)


def test_the_columns_come_in_the_models_order():
    """A pipeline without names knows columns by their place alone."""
    chosen = (FEATURES[5], FEATURES[0])
    np.testing.assert_array_equal(featurise(readings(), chosen)[1], featurise(readings(), FEATURES)[1][:, [5, 0]])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("userAcceleration.x", math.nan, r"not-finite: readings\[17\]\.userAcceleration\.x: must be finite"),
        ("rotationRate.z", math.inf, r"not-finite: readings\[17\]\.rotationRate\.z: must be finite"),
        ("userAcceleration.y", 1e300, r"out-of-range: readings\[17\]\.userAcceleration\.y: 1e\+300 is not in"),
        ("ts", math.nan, r"not-finite: readings\[17\]\.ts: must be finite"),
        ("ts", -1.0, r"out-of-range: readings\[17\]\.ts: -1\b.* is negative"),
        ("ts", 1_700_000_000.0, r"out-of-order: readings\[17\]\.ts: 1700000000\b.* is not after"),
    ],
)
def test_a_reading_that_the_agent_would_refuse_is_named_by_index_and_field(field, value, said):
    """The one value among thousands is what a client needs to know; a label for it would be made up."""
    name = field if field == "ts" else field_of(field)
    with pytest.raises(Reject, match=f"^{said}"):
        featurise(changed(17, **{name: value}), FEATURES)


def test_a_model_with_rotation_says_which_reading_lacks_it():
    """NaN would pass through some models as if it were a value."""
    name = CHANNEL_NAMES[ROTATION][1]
    with pytest.raises(Reject, match=r"^schema: readings\[17\]\.rotationRate\.y: .*send it with every reading"):
        featurise(changed(17, **{field_of(name): None}), FEATURES)


def test_a_model_without_rotation_does_not_ask_for_it():
    """Devices without a gyroscope are served as well."""
    without = [
        msgspec.structs.replace(each, **{field_of(name): None for name in CHANNEL_NAMES[ROTATION]})
        for each in readings()
    ]
    starts, table = featurise(without, FEATURES_WITHOUT_ROTATION)
    assert len(starts) == 3
    assert np.isfinite(table).all()


@pytest.mark.parametrize("count", [1, WINDOW - 1])
def test_fewer_readings_than_a_window_make_none(count):
    """The server then says how many are needed; half a window would be guessed."""
    starts, table = featurise(readings(count), FEATURES)
    assert len(starts) == 0
    assert table.shape == (0, len(FEATURES))


def test_a_duplicate_reading_is_dropped_as_in_the_agent():
    """Clients that retry send a reading twice; the windows must not shift."""
    sent = readings()
    np.testing.assert_array_equal(
        featurise([*sent[:50], sent[49], *sent[50:]], FEATURES)[1], featurise(sent, FEATURES)[1]
    )


def test_readings_of_two_devices_are_refused():
    """A window across two devices is nobody's movement."""
    with pytest.raises(Reject, match="schema: readings: of 2 devices"):
        featurise(changed(17, device="phone-02"), FEATURES)
