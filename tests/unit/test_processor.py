"""The agent's core: the same records give the same events and the same state, whatever crashes in between."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.confirmed import Confirmed
from streams.detectors import DETECTORS
from streams.inject import apply, parse_drift
from streams.processor import Processor
from streams.producer import messages
from streams.records import Record, chunk_of
from streams.simulator import simulate

NOW = 1.7e9
ALL = tuple(DETECTORS)


def kind(detector):
    """`confirmed` judges after a minute, as the records are of four."""
    return Confirmed("sensitive", calibration_s=70) if detector == "confirmed" else DETECTORS[detector]


def processor(detector="confirmed", saved=None, **more):
    """A processor of partition 2; saved: encoded states by device."""
    return Processor("activity", 2, model="activity", load=(saved or {}).get, fresh=kind(detector), **more)


def with_a_bad_reading(value):
    """The readings of a message a little later, the first of them impossible."""
    message = json.loads(value)
    message["ts"] = [ts + 0.01 for ts in message["ts"]]
    message["attitude.roll"][0] = 99.0
    return json.dumps(message).encode()


@cache
def values(batch=25, seconds=240):
    """Key and value of two people's messages with a drift, and with what sensors get wrong in between."""
    rng = np.random.default_rng(5)
    people = simulate(2, seconds, seed=3, start_ts=NOW, bout_seconds=(9, 15), mix={"wlk": 0.5, "sit": 0.5})
    people = [apply(person, parse_drift("gain:6@120"), rng) for person in people]
    found = []
    late = None
    for number, (key, value) in enumerate(messages(people, batch)):
        found.append((key, value))
        if number % 17 == 3:
            found.append((key, value))  # sent twice
        if number % 19 == 4:
            late = late or (key, value.replace(b"0.1", b"0.2"))
            found.append(late)
        if number % 23 == 5:
            found += [
                (key, b"not json"),
                (b"elsewhere", value),
                (b"phone-09", json.dumps({"device": "phone-09"}).encode()),
            ]
        if number % 29 == 6:
            found.append((key, with_a_bad_reading(value)))
    return tuple(found)


def records(**how):
    return [Record(offset, NOW, key, value) for offset, (key, value) in enumerate(values(**how))]


def outcome_of(target, runs):
    """Everything that processing the runs led to, in a form that can be compared."""
    drifts, rejections, counts = [], [], np.zeros(3, int)
    for run in runs:
        outcome = target.process(chunk_of(run))
        drifts += [(drift.id, drift.event) for drift in outcome.drifts]
        rejections += [(item.record.offset, item.reject_class, item.reason) for item in outcome.rejections]
        counts += (outcome.readings, outcome.windows, outcome.duplicates)
    return sorted(drifts, key=lambda drift: drift[0]), rejections, target.snapshot(), counts.tolist()


@cache
def undisturbed(detector):
    return outcome_of(processor(detector), [records()])


def split(whole, bounds):
    return [whole[start:end] for start, end in pairwise([0, *sorted(bounds), len(whole)])]


COUNT = len(values())
bounds = st.lists(st.integers(0, COUNT), max_size=12)


@pytest.mark.parametrize("detector", ALL)
def test_the_records_hold_what_the_other_tests_need(detector):
    """A comparison of nothing with nothing proves nothing."""
    drifts, rejections, changed, (readings, windows, duplicates) = undisturbed(detector)
    assert drifts
    assert {item[1] for item in rejections} == {"syntax", "schema", "device-mismatch", "out-of-range", "out-of-order"}
    assert set(changed) == {"phone-01", "phone-02"}
    assert readings > 2 * 240 * 50
    assert windows > 300 or detector == "raw"  # which looks at readings
    assert duplicates > 500


@pytest.mark.parametrize("detector", ALL)
@given(bounds=bounds)
@settings(max_examples=2, deadline=None)
def test_any_runs_give_the_events_dead_letters_and_state_of_one_run(detector, bounds):
    """How Kafka happens to hand records over, and where a restart falls, must not change what is found."""
    assert outcome_of(processor(detector), split(records(), bounds)) == undisturbed(detector)


@pytest.mark.parametrize("detector", ALL)
def test_record_by_record_gives_what_one_run_gives(detector):
    """The slowest stream is one record a run."""
    assert outcome_of(processor(detector), [[record] for record in records()]) == undisturbed(detector)


@pytest.mark.parametrize("detector", ALL)
@given(bounds=bounds)
@settings(max_examples=2, deadline=None)
def test_state_that_was_saved_and_read_back_goes_on_as_if_it_had_not_been(detector, bounds):
    """A restart, or a partition that moves to another machine, is one of these."""
    saved, drifts, rejections = {}, [], []
    for run in split(records(), bounds):
        found, rejected, changed, _ = outcome_of(processor(detector, saved), [run])
        drifts, rejections, saved = drifts + found, rejections + rejected, saved | changed
    assert (sorted(drifts, key=lambda drift: drift[0]), rejections, saved) == undisturbed(detector)[:3]


@pytest.mark.parametrize("detector", ALL)
def test_a_device_that_was_let_go_while_it_was_silent_comes_back_as_it_was(detector):
    """What is kept of it meanwhile is what is saved, so that memory follows the devices that send."""
    now, saved = 0.0, {}
    target = Processor("activity", 2, model="activity", load=saved.get, fresh=kind(detector), clock=lambda: now)
    drifts, rejections = [], []
    for number, run in enumerate(split(records(), range(0, COUNT, 40))):
        found, rejected, changed, _ = outcome_of(target, [run])
        drifts, rejections = drifts + found, rejections + rejected
        saved |= changed
        assert target.silent(60) == {}, "it has just sent something"
        if number % 2:
            now += 61
            let_go = target.silent(60)
            assert let_go == {device: saved[device] for device in let_go}
            assert not target.names
    assert (sorted(drifts, key=lambda drift: drift[0]), rejections, saved) == undisturbed(detector)[:3]


@pytest.mark.parametrize("again", [1, 40, COUNT])
@pytest.mark.parametrize("detector", ALL)
def test_records_delivered_again_change_nothing(detector, again):
    """After a crash Kafka delivers from the last committed offset; the state is ahead of it."""
    saved = undisturbed(detector)[2]
    target = processor(detector, saved)
    outcome = target.process(chunk_of(records()[-again:]))
    assert outcome.drifts == []
    assert target.snapshot() == {}
    assert (outcome.readings, outcome.windows, outcome.duplicates) == (0, 0, 0)
    assert {item.reject_class for item in outcome.rejections} <= {"syntax", "schema", "device-mismatch"}


@pytest.mark.parametrize("detector", ALL)
def test_a_crash_between_two_devices_checkpoints_loses_and_repeats_nothing(detector):
    """States are written one by one: one device may be ahead of the other when the process dies."""
    whole, cut = records(), COUNT // 2
    first = outcome_of(processor(detector), [whole[:cut]])
    half_saved = {"phone-02": first[2]["phone-02"]}
    second = outcome_of(processor(detector, half_saved), [whole])
    assert dict(first[0]) | dict(second[0]) == dict(undisturbed(detector)[0])
    assert second[2] == undisturbed(detector)[2]


@pytest.mark.parametrize("detector", ALL)
def test_singles_and_batches_of_the_same_readings_give_the_same_changes(detector):
    """Batching is the sender's way to save bytes; offsets differ, what is found must not."""

    def shown(batch):
        people = [apply(p, parse_drift("noise:0.4@100"), np.random.default_rng(1)) for p in simulate(1, 260, 11, NOW)]
        found = [Record(at, NOW, key, value) for at, (key, value) in enumerate(messages(people, batch))]
        return [
            (event.feature, event.statistic, event.ts, event.change_ts, event.before, event.after, event.effect)
            for event in (drift.event for drift in processor(detector).process(chunk_of(found)).drifts)
        ]

    assert shown(1) == shown(64)
    assert detector == "confirmed" or shown(1)


def test_another_devices_bad_records_change_nothing():
    """A partition is shared; one broken sensor must not be felt by the others."""
    good = [record for record in records() if record.key == b"phone-01" and record.value != b"not json"]
    bad = [
        Record(record.offset, NOW, b"broken", value)
        for record, value in zip(
            (record for record in records() if record.key == b"phone-02"),
            [b"", b"{}", b"\xff", b'{"device": "broken"}', None, b"[" * 9999] * COUNT,
            strict=False,
        )
    ]
    alone = outcome_of(processor(), [good])
    shared = outcome_of(processor(), [sorted([*good, *bad], key=lambda record: record.offset)])
    assert shared[0] == alone[0]
    assert shared[2:] == alone[2:]


def test_ids_depend_on_the_place_and_the_detector_and_on_nothing_else():
    """Ids are what consumers recognise a repetition by."""
    found = undisturbed("confirmed")[0]
    versioned = outcome_of(processor(model_version=lambda: "7"), [records()])[0]
    assert versioned != found  # the version is told ...
    assert [id for id, _ in versioned] == [id for id, _ in found]  # ... but decides nothing
    elsewhere = Processor("activity", 3, model="activity", load=lambda _: None, fresh=DETECTORS["confirmed"])
    assert not {id for id, _ in outcome_of(elsewhere, [records()])[0]} & {id for id, _ in found}
    assert len({id for id, _ in found}) == len(found)


def test_drifts_of_one_moment_share_an_episode_and_those_of_two_devices_do_not():
    """A retraining answers an episode, not each feature that moved with it."""
    events = [event for _, event in undisturbed("confirmed")[0]]
    assert len(events) > len({event.episode for event in events})
    for event in events:
        assert {(other.device, other.ts) for other in events if other.episode == event.episode} == {
            (event.device, event.ts)
        }


def test_an_event_points_at_the_records_that_carried_it():
    """The retraining reads its window back from these offsets."""
    by_offset = {record.offset: json.loads(record.value) for record in records() if record.value[:1] == b"{"}
    for _, event in undisturbed("confirmed")[0]:
        alarm, change = by_offset[event.position.offset], by_offset[event.change_position.offset]
        assert alarm["device"] == change["device"] == event.device
        assert alarm["ts"][0] <= event.ts <= alarm["ts"][-1]
        assert change["ts"][0] <= event.change_ts <= change["ts"][-1]
        assert event.change_position.offset <= event.position.offset
        assert (event.position.topic, event.position.partition) == ("activity", 2)


def test_another_detectors_state_starts_fresh_but_not_from_the_beginning():
    """A new version must neither read old numbers as its own nor report old drifts again."""
    saved = undisturbed("raw")[2]
    target = processor("confirmed", saved)
    target.process(chunk_of(records()))
    assert target.snapshot() == {}
    key, value = messages(simulate(1, 1, seed=11, start_ts=NOW + 1000), 50).__next__()
    later = target.process(chunk_of([Record(COUNT, NOW + 1000, key, value)]))
    assert later.readings == 50
