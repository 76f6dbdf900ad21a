"""Messages as the contract has them: both shapes, in the order of event time."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from schemas.activity import (
    CHANNEL_NAMES,
    MAX_MESSAGE_BYTES,
    MAX_READINGS_PER_MESSAGE,
    ROTATION,
    Reading,
    ReadingBatch,
    field_of,
)
from schemas.errors import UserError
from schemas.settings import Settings
from streams.producer import messages, produce
from streams.recording import Person, Recording
from streams.simulator import simulate
from streams.windows import LABEL_CODES

SETTINGS = Settings(_env_file=None, kafka_bootstrap="127.0.0.1:1")


def recording(n=5, device="phone-07", start=100.0, labels=None, trials=None, values=None):
    return Recording(
        device,
        Person("7", weight=72.0, gender=1),
        start + np.arange(n) / 50,
        np.arange(n * 12).reshape(n, 12) / 7 if values is None else values,
        np.full(n, LABEL_CODES["wlk"]) if labels is None else np.array(labels),
        np.full(n, 15) if trials is None else np.array(trials),
    )


def singles(*recordings):
    return [msgspec.json.decode(value, type=Reading) for _, value in messages(recordings)]


def batches(*recordings, batch):
    return [msgspec.json.decode(value, type=ReadingBatch) for _, value in messages(recordings, batch)]


def test_a_reading_is_flat_json_with_motionsense_names():
    """The shape in the contract is what other programs parse, so here it is as text and not through our own type."""
    key, value = list(messages([recording()]))[1]
    assert key == b"phone-07"
    sent = msgspec.json.decode(value)
    assert sent == {
        "device": "phone-07",
        "ts": 100.02,
        "seq": 1,
        "trial": 15,
        "act": "wlk",
        "subject": "7",
        "weight": 72.0,
        "gender": 1,
        **{name: round((12 + column) / 7, 6) for column, name in enumerate(CHANNEL_NAMES)},
    }


def test_a_batch_holds_what_the_single_readings_hold():
    """Which of the two a person chooses must not change what the agent sees."""
    device = simulate(1, 90, seed=1, start_ts=1.7e9)[0]  # more than is encoded at a time
    one = singles(device)
    many = batches(device, batch=50)
    assert max(len(message.ts) for message in many) == 50
    for field in ("ts", "seq", *map(field_of, CHANNEL_NAMES)):
        assert [getattr(reading, field) for reading in one] == [x for part in many for x in getattr(part, field)]
    for field in ("act", "trial"):
        assert [getattr(reading, field) for reading in one] == [getattr(part, field) for part in many for _ in part.ts]


def test_a_batch_ends_with_its_trial_and_its_activity():
    """Trial is a scalar of the message; a batch across two would give one of them the other's number."""
    wlk, sit = LABEL_CODES["wlk"], LABEL_CODES["sit"]
    sent = batches(recording(6, labels=[wlk] * 3 + [sit] * 3, trials=[1, 1, 2, 2, 2, 2]), batch=4)
    assert [(len(part.ts), part.act, part.trial) for part in sent] == [(2, "wlk", 1), (1, "wlk", 2), (3, "sit", 2)]


def test_devices_are_interleaved_by_event_time():
    """A fleet measures at once; one device's hour after the other's would be another load altogether."""
    late, early = recording(4, "b", 100.03), recording(4, "a", 100.0)
    assert [(reading.device, reading.seq) for reading in singles(late, early)] == [
        *[("a", 0), ("a", 1), ("b", 0), ("a", 2), ("b", 1), ("a", 3), ("b", 2), ("b", 3)]
    ]
    assert [part.device for part in batches(late, early, batch=2)] == ["a", "b", "a", "b"]


def test_what_a_device_does_not_measure_is_left_out():
    """rotationRate is optional; NaN is not JSON, and null would be a value."""
    values = np.ones((3, 12))
    values[:, ROTATION] = np.nan
    _, value = next(messages([recording(3, values=values)]))
    assert b"rotationRate" not in value
    _, value = next(messages([recording(3, values=values)], 3))
    assert b"rotationRate" not in value
    unlabelled = recording(2, labels=[-1, -1])
    assert singles(unlabelled)[0].act is None
    assert batches(unlabelled, batch=2)[0].act is None


def test_the_largest_batch_fits_into_a_message():
    """1,000 readings and 256 KiB are both promised; real numbers have many digits."""
    device = replace(simulate(1, 90, seed=2, start_ts=1.7e9, bout_seconds=(80.0, 90.0))[0])
    sizes = [(len(value), len(msgspec.json.decode(value)["ts"])) for _, value in messages([device], 1000)]
    assert max(count for _, count in sizes) == MAX_READINGS_PER_MESSAGE
    assert max(size for size, _ in sizes) <= MAX_MESSAGE_BYTES


def test_nothing_recorded_is_nothing_sent():
    """An empty selection is no error here."""
    assert list(messages([])) == []
    assert list(messages([recording(0)])) == []
    assert list(messages([recording(0)], 10)) == []


@pytest.mark.parametrize("batch", [0, -1, 1001])
def test_a_batch_that_no_agent_accepts_is_never_begun(batch):
    """The agent would dead-letter every message of it."""
    with pytest.raises(UserError, match="1,000"):
        messages([recording()], batch)


@pytest.mark.parametrize("wrong", [{"speed": 0.0}, {"speed": -1.0}, {"speed": float("nan")}, {"limit": -1}])
def test_arguments_that_cannot_work_are_told_before_kafka_is_asked(wrong):
    """The numbers come from the command line."""
    with pytest.raises(UserError):
        produce(SETTINGS, [recording()], **wrong)
