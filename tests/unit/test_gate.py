"""What may reach a detector, and what a sensor's mistake is called."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.activity import (
    CHANNEL_NAMES,
    CHANNELS,
    GRAVITY,
    MAX_MESSAGE_BYTES,
    MAX_READINGS_PER_MESSAGE,
    REJECT_CLASSES,
    ROTATION,
)
from schemas.errors import Reject
from streams.gate import CLOCK_AHEAD_S, KNOWN_READINGS, MAX_AHEAD_S, MAX_TS, Rejection, decode, decode_chunk
from streams.intake import Buffered, Intake, Names
from streams.records import Record, chunk_of
from streams.windows import LABEL_CODES, NO_LABEL, Readings

NOW = 1.7e9
REQUIRED = [channel.name for channel in CHANNELS if channel.required]


def single(**changes):
    """A good reading as a dict, with changes; a field set to ... is left out."""
    fields = {"device": "phone-07", "ts": NOW, "seq": 7, **dict.fromkeys(CHANNEL_NAMES, 0.25), "act": "wlk"}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def batch(count=3, **changes):
    """A good batch as a dict, 50 Hz."""
    fields = {"device": "phone-07", "ts": [NOW + i / 50 for i in range(count)], "seq": list(range(count)), "act": "wlk"}
    fields |= {name: [0.25 + i / 1000 for i in range(count)] for name in CHANNEL_NAMES}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def with_raw(message, **raw):
    """JSON of the message in which each field's value is the text given, valid JSON or not."""
    text = json.dumps({**message, **{name: f"@{name}@" for name in raw}})
    for name, value in raw.items():
        text = text.replace(f'"@{name}@"', value)
    return text.encode()


@dataclass
class Passed:
    """What came through, and what did not."""

    readings: Readings
    rejections: list[Rejection]
    duplicates: int
    buffered: Buffered


def passed(*values, key=b"phone-07", timestamp=NOW, after=None):
    """What comes through of records with these values, taken as one chunk; after: what the device has sent before."""
    chunk = chunk_of(
        [
            Record(offset, timestamp, key, value if isinstance(value, bytes | None) else json.dumps(value).encode())
            for offset, value in enumerate(values, after.last_offset + 1 if after else 0)
        ]
    )
    intake, names = Intake(), Names()
    rows, rejections = decode_chunk(chunk, names)
    if after is not None:
        intake.restore(0, after)
    taken = intake.take(rows, chunk)
    return Passed(taken.readings, [*rejections, *taken.rejections], taken.duplicates, intake.buffered(0))


def reject_of(value, **more):
    """Class and reason of the one rejection that a lone record leads to; None if it passes."""
    rejections = passed(value, **more).rejections
    assert len(rejections) <= 1
    return (rejections[0].reject_class, rejections[0].reason) if rejections else None


GOOD = json.dumps(single()).encode()
NOT_UTF8 = {
    "gzip": gzip.compress(GOOD),
    "byte order mark": GOOD.decode().encode("utf-8-sig"),
    "byte order mark before nothing": b"\xef\xbb\xbf",
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "UTF-16 big end first": GOOD.decode().encode("utf-16-be"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "latin-1": GOOD.replace(b'"wlk"', b'"w\xe4lk"'),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "half a surrogate pair for a number": with_raw(single(), ts='"\\ud800"'),
    "half a surrogate pair for an activity": with_raw(single(), act='"\\udfff"'),
    "half a surrogate pair in a batch": with_raw(batch(), act='["wlk", "\\ud800", "wlk"]'),
}
NOT_JSON = {
    "null": None,
    "empty": b"",
    "blank": b" \n",
    "csv": b"phone-07,1700000000,0.1",
    "cut short": GOOD[:-1],
    "two objects": GOOD + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"),
    "trailing comma": GOOD[:-1] + b",}",
    "hex": with_raw(single(), ts="0x10"),
    "leading zero": with_raw(single(), ts="007"),
    "nested too deep": b"[" * 100_000,
    "nested too deep in a field": with_raw(single(), extra="[" * 50_000 + "]" * 50_000),
    "NUL at the end": GOOD + b"\0",
}
NOT_A_READING = {
    "a list": b"[]",
    "a string": b'"reading"',
    "a number": b"1",
    "null as JSON": b"null",
    "an empty object": b"{}",
    **{f"no {name}": single(**{name: ...}) for name in ["device", "ts", *REQUIRED]},
    **{f"no {name} in a batch": batch(**{name: ...}) for name in ["device", *REQUIRED]},
    "ts a text": single(ts="1700000000.0"),
    "ts a date": single(ts="2023-11-14T22:13:20Z"),
    "ts a boolean": single(ts=True),
    "ts null": single(ts=None),
    "channel a text": single(**{"attitude.roll": "0.1"}),
    "channel a boolean": single(**{"attitude.roll": True}),
    "channel null": single(**{"attitude.roll": None}),
    "channel an object": single(**{"attitude.roll": {"value": 1}}),
    "channel a list in a single reading": single(**{"attitude.roll": [0.1]}),
    "seq a fraction": single(seq=1.5),
    "seq a text": single(seq="1"),
    "act unknown": single(act="swim"),
    "act a number": single(act=4),
    "subject a number": single(subject=7),
    "weight a text": single(weight="72"),
    "device a number": single(device=7),
    "device null": single(device=None),
    "device twice, the last one no text": with_raw(single(), device='"phone-07", "device": 7'),
    "ts a list, channels not": single(ts=[NOW]),
    "an empty batch": batch(0),
    "a null in a batch": batch(**{"attitude.roll": [0.1, None, 0.1]}),
    "a text in a batch": batch(**{"attitude.roll": [0.1, "0.1", 0.1]}),
    "a boolean in a batch": batch(**{"attitude.roll": [0.1, False, 0.1]}),
    "a list in a batch": batch(**{"attitude.roll": [0.1, [], 0.1]}),
    "a channel shorter than ts": batch(**{"attitude.roll": [0.1, 0.2]}),
    "a channel longer than ts": batch(**{"gravity.x": [0.1] * 4}),
    "seq shorter than ts": batch(seq=[1, 2]),
    "act longer than ts": batch(act=["wlk"] * 4),
    "act unknown in a batch": batch(act=["wlk", "swim", "wlk"]),
}
BAD_DEVICES = [
    "",
    "a" * 65,
    "a b",
    "../etc",
    "phöne",
    "a\n",
    "a\x00",
    "${jndi:ldap://x}",
    "'; drop",
    "a/b",
    " a",
    "a\u200b",
]


@pytest.mark.parametrize(
    ("reject_class", "value"),
    [
        pytest.param(reject_class, value, id=f"{reject_class}: {name}")
        for reject_class, corpus in (("encoding", NOT_UTF8), ("syntax", NOT_JSON), ("schema", NOT_A_READING))
        for name, value in corpus.items()
    ],
)
def test_what_is_no_reading_is_rejected_by_what_is_wrong_with_it(reject_class, value):
    """Whoever reads a dead letter should know what to mend in the sensor."""
    assert reject_of(value)[0] == reject_class


@pytest.mark.parametrize("device", BAD_DEVICES)
def test_a_device_name_holds_nothing_that_a_path_a_label_or_a_shell_could_misread(device):
    """Names end up in file names, tags and metrics."""
    assert reject_of(single(device=device), key=device.encode())[0] == "schema"


@pytest.mark.parametrize("device", ["a", "a" * 64, "Phone_7.x-1", "..", "-"])
def test_a_device_name_of_the_contract_passes(device):
    """The limit is the contract's, not a tighter one."""
    assert reject_of(single(device=device), key=device.encode()) is None


@pytest.mark.parametrize("key", [None, b"", b"phone-08", b"phone-07 ", b"\xff\xfe\x00", b"x" * 100_000])
def test_a_key_that_is_not_the_device_is_rejected(key):
    """The key decides the partition: a device in two partitions would have two states."""
    reject_class, reason = reject_of(GOOD, key=key)
    assert reject_class == "device-mismatch"
    assert len(reason) < 400
    assert "phone-07" in reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["ts", *CHANNEL_NAMES])
def test_a_number_that_is_not_finite_never_reaches_a_detector(field, number):
    """One NaN blinds ADWIN for good, without an exception."""
    assert reject_of(with_raw(single(), **{field: number})) == ("not-finite", field)
    in_a_batch = batch()
    column = [*map(str, in_a_batch[field])]
    column[1] = number
    found = passed(with_raw(in_a_batch, **{field: f"[{', '.join(column)}]"}))
    assert [(item.reject_class, item.reason) for item in found.rejections] == [("not-finite", field)]
    assert np.isfinite(found.readings.values).all()
    assert len(found.readings) == 2


@pytest.mark.parametrize("field", ["weight", "height", "age"])
def test_a_person_of_infinite_weight_is_rejected(field):
    """JSON has no such number, wherever it stands; a model that is given it learns nothing."""
    assert reject_of(with_raw(single(), **{field: "NaN"})) == ("not-finite", field)
    assert reject_of(with_raw(batch(), **{field: "-1e999"})) == ("not-finite", field)


@pytest.mark.parametrize("number", ["1e300", "-1e300", "1" + "0" * 400, "1" + "0" * 5000, "33.0"])
@pytest.mark.parametrize("field", CHANNEL_NAMES)
def test_a_number_that_no_sensor_can_report_is_out_of_range(field, number):
    """1e300 is finite, and blinds ADWIN as well."""
    if number == "33.0" and field in CHANNEL_NAMES[ROTATION]:
        number = "61.0"
    reject_class, reason = reject_of(with_raw(single(), **{field: number}))
    assert reject_class == "out-of-range"
    assert len(reason) < 200
    column = f"[0.1, {number}, 0.1]"
    assert reject_of(with_raw(batch(), **{field: column}))[0] == "out-of-range"


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
def test_the_range_ends_where_the_channel_table_says(channel):
    """What the sensor can report passes, ends included."""
    for end, beyond in ((channel.low, -math.inf), (channel.high, math.inf)):
        assert reject_of(single(**{channel.name: end})) is None
        reject_class, reason = reject_of(single(**{channel.name: math.nextafter(end, beyond)}))
        assert reject_class == "out-of-range"
        assert channel.name in reason


@pytest.mark.parametrize(
    ("ts", "reject_class"),
    [
        (NOW + MAX_AHEAD_S, None),
        (NOW + MAX_AHEAD_S + 1, "out-of-range"),
        (1e300, "out-of-range"),
        (-1.0, "out-of-range"),
        (-0.0, None),
        (0, None),
        (NOW * 1000, "out-of-range"),
    ],
)
def test_a_clock_that_is_far_ahead_is_rejected(ts, reject_class):
    """After such a reading every right one of the device would look old; milliseconds are the usual mistake."""
    found = reject_of(single(ts=ts))
    assert (found and found[0]) == reject_class
    assert found is None or len(found[1]) < 120


@pytest.mark.parametrize("timestamp", [None, 9e15])
def test_a_time_that_cannot_be_written_as_a_date_is_rejected(timestamp):
    """A record's timestamp is its sender's; an event of the year 10000 would stop the agent at that record for good."""
    assert reject_of(single(ts=MAX_TS), timestamp=timestamp) is None
    assert reject_of(single(ts=MAX_TS + 1), timestamp=timestamp)[0] == "out-of-range"


def padded(size):
    return GOOD[:-1] + b" " * (size - len(GOOD)) + GOOD[-1:]


@pytest.mark.parametrize(
    ("size", "reject_class"),
    [
        (MAX_MESSAGE_BYTES - 1, None),
        (MAX_MESSAGE_BYTES, None),
        (MAX_MESSAGE_BYTES + 1, "oversize"),
        (20 << 20, "oversize"),
    ],
)
def test_a_message_holds_at_most_256_kib(size, reject_class):
    """The limit is exact, so that a producer can count on it."""
    found = reject_of(padded(size))
    assert (found and found[0]) == reject_class


@pytest.mark.parametrize("extra", [0, 1])
def test_a_message_holds_at_most_1000_readings(extra):
    """The limit is exact, so that a producer can count on it."""
    short = {name: ... for name in CHANNEL_NAMES if name not in REQUIRED}
    found = reject_of(batch(MAX_READINGS_PER_MESSAGE + extra, **short))
    assert (found and found[0]) == ("oversize" if extra else None)


def test_good_readings_of_a_batch_pass_and_one_dead_letter_names_the_first_bad_one():
    """A batch is one record, so it is dead-lettered once; what is good in it must not be lost."""
    bad = batch(6)
    bad["attitude.roll"][1] = 99.0
    bad["attitude.yaw"][3] = math.inf
    bad["ts"][5] = bad["ts"][0] - 1
    found = passed(json.dumps(bad).encode())
    assert found.readings.ts.tolist() == [bad["ts"][row] for row in (0, 2, 4)]
    (rejection,) = found.rejections
    assert rejection.reject_class == "out-of-range"
    assert rejection.reason.startswith("attitude.roll 99 is not in")
    assert rejection.reason.endswith("(and 2 more readings of this batch)")
    assert rejection.record.offset == 0


def test_the_same_reading_again_is_dropped_and_counted():
    """A sender that is not sure sends again; that is no fault of the data."""
    found = passed(single(), single(), single(ts=NOW + 1), single())
    assert (len(found.readings), found.duplicates, found.rejections) == (2, 2, [])


def test_a_whole_batch_sent_again_is_dropped_in_this_run_or_a_later_one():
    """At-least-once delivery repeats messages, and a message is up to 1,000 readings: more than a window's buffer."""
    short = {name: ... for name in CHANNEL_NAMES if name not in REQUIRED}
    whole = batch(MAX_READINGS_PER_MESSAGE, **short)
    together = passed(whole, whole)
    assert (len(together.readings), together.duplicates, together.rejections) == (1000, 1000, [])
    first = passed(whole)
    again = passed(whole, after=first.buffered)
    assert (len(again.readings), again.duplicates, again.rejections) == (0, 1000, [])
    assert len(again.buffered.known) == KNOWN_READINGS


@pytest.mark.parametrize(
    "change", [{"attitude.roll": 0.26}, {"gravity.x": ...}, {"rotationRate.z": 0.0}, {"ts": NOW - 1}]
)
def test_a_reading_that_comes_late_is_out_of_order(change):
    """Same time but other values is a contradiction, not a repetition; an older one cannot be put into a window."""
    found = passed(single(), single(**change))
    assert [item.reject_class for item in found.rejections] == ["out-of-order"]
    assert (len(found.readings), found.duplicates) == (1, 0)


def test_a_device_whose_clock_is_set_right_is_heard_again():
    """One reading an hour ahead would else make all right ones late, and the device mute, for that hour."""
    found = passed(single(ts=NOW + 3600), single(ts=NOW), single(ts=NOW + 1), single(ts=NOW))
    assert found.readings.ts.tolist() == [NOW + 3600, NOW, NOW + 1]
    assert (found.duplicates, found.rejections) == (1, [])


@pytest.mark.parametrize(
    ("before", "ts", "timestamp"),
    [
        (NOW + 3600, NOW + 3500, NOW),  # the clock still is ahead
        (NOW + CLOCK_AHEAD_S, NOW, NOW),  # no clock is exact
        (NOW + 3600, NOW, None),  # nobody can tell
        (NOW + 3600, NOW, NOW + 3600),  # a message that was under way for an hour
    ],
)
def test_what_comes_late_stays_late_where_no_clock_was_set_right(before, ts, timestamp):
    found = passed(single(ts=before), single(ts=ts), timestamp=timestamp)
    assert [item.reject_class for item in found.rejections] == ["out-of-order"]


def test_no_window_holds_readings_of_before_and_after_a_clock_was_set_right():
    """A window that spans an hour looks like a drift."""
    ahead, right = ([single(ts=start + i / 50) for i in range(200)] for start in (NOW + 3600, NOW))
    chunk = chunk_of(
        [Record(n, NOW + 4, b"phone-07", json.dumps(each).encode()) for n, each in enumerate([*ahead, *right])]
    )
    rows, _ = decode_chunk(chunk, Names())
    windows = Intake().take(rows, chunk).windows
    assert windows.start.tolist() == pytest.approx([NOW + 3600, NOW + 3600 + 64 / 50, NOW, NOW + 64 / 50])
    assert (windows.end - windows.start).tolist() == pytest.approx([127 / 50] * 4)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 1000, 1001, 1002, 5000]), max_size=30), st.integers(0, 30))
def test_a_clock_that_jumps_is_judged_alike_however_chunks_are_cut(seconds, cut):
    values = [single(ts=NOW + each) for each in seconds]
    together = passed(*values)
    first = passed(*values[:cut])
    if cut >= len(values) or not cut or not len(first.readings):
        return
    second = passed(*values[cut:], after=first.buffered)
    ts = first.readings.ts.tolist() + second.readings.ts.tolist()
    assert ts == together.readings.ts.tolist()
    assert first.duplicates + second.duplicates == together.duplicates


def test_a_bad_reading_does_not_make_the_next_one_late():
    """Only what was accepted counts as seen."""
    found = passed(single(ts=NOW + 60, **{"attitude.roll": 99.0}), single(ts=NOW))
    assert found.readings.ts.tolist() == [NOW]


def test_negative_zero_and_zero_are_the_same_reading():
    """JSON writers differ there."""
    assert passed(single(**{"attitude.roll": 0.0}), single(**{"attitude.roll": -0.0})).duplicates == 1


def test_optional_channels_may_be_absent_and_gravity_is_then_computed():
    """Contracts: only attitude and userAcceleration are required."""
    absent = {name: ... for name in ["seq", "act", *CHANNEL_NAMES] if name not in REQUIRED}
    for value, count in ((single(**absent), 1), (batch(**absent), 3), (single(**{"gravity.x": None}), 1)):
        found = passed(value)
        assert len(found.readings) == count
        assert np.isfinite(found.readings.values[:, GRAVITY]).all()
    assert np.isnan(passed(single(**absent)).readings.values[:, ROTATION]).all()
    assert passed(single(**absent)).readings.labels.tolist() == [NO_LABEL]


def test_unknown_fields_are_ignored():
    """A sensor may say more than we ask for."""
    assert reject_of(with_raw(single(), extra='{"deep": [1, NaN, "\\ud800"]}', firmware='"1.2"')) is None


def test_act_may_be_one_label_or_one_a_reading():
    """A batch may cover a change of activity."""
    assert passed(batch(act="jog")).readings.labels.tolist() == [LABEL_CODES["jog"]] * 3
    mixed = passed(batch(act=["wlk", None, "sit"])).readings.labels
    assert mixed.tolist() == [LABEL_CODES["wlk"], NO_LABEL, LABEL_CODES["sit"]]


def test_a_reason_never_breaks_a_log_line_or_a_header():
    """What a stranger sends is quoted in reasons."""
    reason = reject_of(with_raw(single(), act='"\\n\\u001b[31mFAKE"'))[1]
    assert reason.isprintable()
    assert reject_of(GOOD, key=b"\n\x1b[31mFAKE")[1].isprintable()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**30)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
mangled = st.builds(
    lambda base, changes: json.dumps({**base, **changes}).encode(),
    st.sampled_from([single(), batch()]),
    st.dictionaries(st.sampled_from([*single(), "weight", "subject", "trial"]), json_values, max_size=3),
)
bitten = st.builds(
    lambda value, at, byte: value[: at % len(value)] + byte + value[at % len(value) + 1 :],
    mangled,
    st.integers(0, 4000),
    st.binary(max_size=2),
)


@given(
    value=st.one_of(st.binary(max_size=80), mangled, bitten, st.none()),
    key=st.sampled_from([b"phone-07", None, b"\xff"]),
)
@example(value=with_raw(single(), weight='"\\ud800"'), key=b"phone-07")
@example(value=b'{"device":"\\ud800', key=None)
@settings(max_examples=400, deadline=None)
def test_no_bytes_raise_anything_but_a_reject_or_let_an_impossible_value_through(value, key):
    """Anything else would stop the agent at that record, again after every restart."""
    record = Record(5, NOW, key, value)
    try:
        decode(record)
    except Reject as reject:
        assert reject.reject_class in REJECT_CLASSES
        assert reject.reason
    found = passed(value, key=key)
    assert {item.reject_class for item in found.rejections} <= set(REJECT_CLASSES)
    assert len(found.rejections) <= 1
    for channel, column in zip(CHANNELS, found.readings.values.T, strict=True):
        absent = np.isnan(column) if not channel.required and not channel.name.startswith("gravity") else False
        assert (absent | ((column >= channel.low) & (column <= channel.high))).all()
    assert ((found.readings.ts >= 0) & (found.readings.ts <= MAX_TS)).all()
    assert (np.diff(found.readings.ts) > 0).all()
