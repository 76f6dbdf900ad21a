"""What the confirmed detector finds on simulated people, what it leaves alone, and what bad input does to it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from schemas.activity import ACTIVITIES, ROTATION
from streams.confirmed import COOLDOWN_S, Confirmed
from streams.drift import Change
from streams.inject import apply, parse_drift
from streams.measures import MEASURED, WIDTH
from streams.processor import Processor
from streams.producer import messages
from streams.quality import Degraded
from streams.records import Record, chunk_of
from streams.simulator import simulate
from streams.windows import NO_LABEL, Readings, cut, empty_readings
from workers.backtest import reference_profile

PEOPLE = 3
SECONDS = 1600
DRIFT_AT = 900
CALIBRATION_S = 600
BOUTS = (15.0, 45.0)


@cache
def people():
    return simulate(PEOPLE, SECONDS, seed=3, start_ts=1.7e9, bout_seconds=BOUTS)


@cache
def profile():
    return reference_profile(simulate(10, 1200, seed=11, start_ts=1.6e9, bout_seconds=BOUTS), 1)


def kind(source="model", known=True, reference=None):
    made = Confirmed("standard", source, CALIBRATION_S)
    if known:
        made.adopt("1", reference or profile())
    return made


def without_gyroscope(recording):
    values = recording.values.copy()
    values[:, ROTATION] = np.nan
    return replace(recording, values=values)


def windows(recording, of=None):
    readings = Readings(recording.ts, recording.values, recording.labels, np.arange(len(recording)))
    found = cut(readings)[0]
    return replace(found, measures=(of or kind()).measure(found.values))


def found(recording, of=None, chunk=10**6):
    of = of or kind()
    whole, detector, said = windows(recording, of), of(), []
    for begin in range(0, len(whole), chunk):
        said += detector.observe(empty_readings(), whole.chosen(slice(begin, begin + chunk)))
    return said


def drifted(number, kind_of_drift, at=DRIFT_AT):
    return apply(people()[number], parse_drift(f"{kind_of_drift}@{at}"), np.random.default_rng(number))


def unlabelled(recording):
    return replace(recording, labels=np.full(len(recording), NO_LABEL))


@pytest.mark.parametrize("source", ["model", "auto"])
def test_undrifted_people_are_left_alone(source):
    """A false alarm costs a training and, worse, trust. At most one in all this time, to be generous."""
    assert (
        len({(number, item.ts) for number, person in enumerate(people()) for item in found(person, kind(source))}) <= 1
    )


@pytest.mark.parametrize("how", ["rotate:90", "rotate:45", "bias:0.3", "gain:1.5", "noise:0.3"])
def test_most_drifts_are_found_without_labels_and_told_when_they_began(how):
    """What it is for. The change point is where the retraining's window begins."""
    alarms = []
    for number in range(PEOPLE):
        began = people()[number].ts[0] + DRIFT_AT
        said = [item for item in found(unlabelled(drifted(number, how))) if item.ts > began]
        alarms += [item for item in said if isinstance(item, Change)][:1]
        for item in said[:1]:
            assert item.ts - began < 400
            assert -60 < item.change_ts - began < 300
            assert item.change_ts < item.ts
            assert item.change_offset < item.offset
            assert item.activity in ACTIVITIES
            assert (item.feature, item.statistic) in {(each.feature, each.kind) for each in MEASURED}
    assert len(alarms) >= PEOPLE - 1


@pytest.mark.parametrize(
    ("how", "name", "low", "high"), [("rotate:45", "rotation_deg", 25, 65), ("gain:1.5", "gain", 1.3, 1.7)]
)
def test_an_alarm_estimates_by_how_much(how, name, low, high):
    """`turned by about 43°` is what a person can act on."""
    began = people()[0].ts[0] + DRIFT_AT
    said = [[item for item in found(drifted(number, how)) if item.ts > began] for number in range(PEOPLE)]
    estimates = [items[0].estimate[name] for items in said if items and name in (items[0].estimate or {})]
    assert estimates
    assert low < np.median(estimates) < high


def test_a_device_without_a_gyroscope_is_judged_alike():
    """Its rotation rate follows from attitude."""
    said = found(without_gyroscope(drifted(0, "gain:1.5")))
    assert said
    assert said[0].ts > people()[0].ts[0] + DRIFT_AT


def test_people_with_one_are_judged_by_those_without_and_the_other_way_round():
    """A fleet is of many kinds of phones, and a profile of whoever sent labels."""
    others = [without_gyroscope(each) for each in simulate(10, 1200, seed=11, start_ts=1.6e9, bout_seconds=BOUTS)]
    of_others = reference_profile(others, 1)
    false = {
        ("with", number, item.ts)
        for number, one in enumerate(people())
        for item in found(one, kind(reference=of_others))
    }
    false |= {
        ("without", number, item.ts) for number, one in enumerate(people()) for item in found(without_gyroscope(one))
    }
    assert len(false) <= 1
    said = found(drifted(0, "gain:1.5"), kind(reference=of_others))
    assert said
    assert said[0].ts > people()[0].ts[0] + DRIFT_AT


@pytest.mark.parametrize("source", ["auto", "model"])
def test_what_is_said_does_not_depend_on_how_many_windows_come_at_once_nor_on_restarts(source):
    """Replayed after a crash, the same readings must give the same event ids."""
    of, recording = kind(source), drifted(0, "bias:0.3")
    mixed = recording.labels.copy()
    mixed[: len(mixed) // 3] = NO_LABEL  # from the model first, then from labels
    values = recording.values.copy()
    values[2_000:3_000, 9] = values[2_000, 9]  # and a stuck sensor meanwhile
    recording = replace(recording, labels=mixed, values=values)
    said = found(recording, of)
    assert any(isinstance(item, Change) for item in said)
    assert any(isinstance(item, Degraded) for item in said)
    for chunk in (1, 7, 64):
        assert found(recording, of, chunk) == said
    whole, states = windows(recording, of), []
    for chunk in (1, 7, 10**6):
        detector = of()
        for begin in range(0, len(whole), chunk):
            detector.observe(empty_readings(), whole.chosen(slice(begin, begin + chunk)))
        states.append(msgspec.msgpack.encode(detector.dump()))
    assert states[0] == states[1] == states[2]  # to the last bit, not only as far as it was told
    whole, restarted = windows(recording, of), []
    state = of().dump()
    for begin in range(0, len(whole), 50):
        detector = of()
        detector.load(msgspec.msgpack.decode(msgspec.msgpack.encode(state)))
        restarted += detector.observe(empty_readings(), whole.chosen(slice(begin, begin + 50)))
        state = detector.dump()
    assert restarted == said
    assert len(msgspec.msgpack.encode(state)) < 20_000


def test_a_bout_that_may_be_another_activity_is_no_evidence():
    """Of a person whom the classifier does not understand nothing can be compared with what it should be."""
    of = kind()
    whole, said = windows(drifted(0, "bias:0.3"), of), []
    for sure in (1.0, 0.6):
        measures = whole.measures.copy()
        code = measures[:, WIDTH:].argmax(1)
        measures[:, WIDTH:] = (1 - sure) / (len(ACTIVITIES) - 1)
        measures[np.arange(len(code)), WIDTH + code] = sure
        said.append(of().observe(empty_readings(), replace(whole, measures=measures)))
    assert said[0]
    assert said[1] == []


def test_a_device_that_never_calibrates_is_never_judged():
    """Nothing is known of it: silence, not a guess."""
    assert found(drifted(0, "rotate:90", at=100).between(0, CALIBRATION_S)) == []


def test_one_activity_alone_is_no_drift():
    """A month of sitting after a day of everything."""
    person = people()[0]
    sitting = person.chosen(np.flatnonzero(person.labels == ACTIVITIES.index("sit")))
    sitting = replace(sitting, ts=person.ts[-1] + 2 + np.arange(len(sitting)) / 50)
    of = kind("label")
    detector = of()
    assert detector.observe(empty_readings(), windows(person, of)) == []
    for turn in range(6):
        later = replace(sitting, ts=sitting.ts + turn * (len(sitting) / 50 + 2))
        assert detector.observe(empty_readings(), windows(later, of)) == []


def test_without_a_model_a_device_calibrates_on_itself():
    """Before the first model labels say what to compare; without any, nothing is judged, nor wrongly."""
    said = found(drifted(0, "bias:0.3"), kind("auto", known=False))
    assert [item.ts > people()[0].ts[0] + DRIFT_AT for item in said][:1] == [True]
    assert said[0].activity in ACTIVITIES
    for person in people():
        assert found(unlabelled(person), kind("auto", known=False)) == []
    assert found(unlabelled(drifted(0, "rotate:90")), kind("auto", known=False)) == []


def test_a_new_profile_keeps_what_the_device_has_shown():
    """A deployment changes what people on the whole are like; it does not blind every device for ten minutes."""
    of = kind("auto", known=False)
    detector, recording = of(), drifted(1, "bias:0.3", at=800)
    before = recording.between(0, 700)
    assert detector.observe(empty_readings(), windows(before, of)) == []
    of.adopt("1", profile())
    said = detector.observe(empty_readings(), windows(recording.between(700), of))
    assert detector.profile == "1"
    assert said
    assert recording.ts[0] + 800 < said[0].ts < recording.ts[0] + 1200


def test_state_of_another_profile_is_taken_over():
    """A restart that does not reach MLflow at once must not throw the devices' calibration away."""
    old, new = kind("auto"), Confirmed("standard", "auto", CALIBRATION_S)
    detector = old()
    detector.observe(empty_readings(), windows(people()[0].between(0, 600), old))
    taken = new()
    taken.load(detector.dump())
    taken.observe(empty_readings(), windows(people()[0].between(600, 700), new))
    assert taken.profile == ""
    for code, item in detector.calibration.learned.items():
        assert taken.calibration.bouts(code) >= item.bouts


def test_a_crash_across_a_change_of_profiles_gives_the_same_ids():
    """What was sent is played again under the new profile; an alarm of another id would be a second training."""
    other = reference_profile(simulate(4, 900, seed=23, start_ts=1.6e9, bout_seconds=BOUTS), 2)
    recording = unlabelled(drifted(1, "bias:0.1"))
    sent = messages([recording], 50)
    records = [Record(offset, None, key, value) for offset, (key, value) in enumerate(sent)]
    saved = {}

    def processor(known):
        of = Confirmed("standard", "model", CALIBRATION_S)
        of.adopt("old" if known is profile() else "new", known)
        return Processor("activity", 0, model="m", load=saved.get, fresh=of)

    first, at = processor(profile()), DRIFT_AT - 100
    first.process(chunk_of(records[:at]))
    saved |= first.snapshot()
    before = first.process(chunk_of(records[at:])).drifts
    again = processor(other).process(chunk_of(records[at:])).drifts
    assert before
    assert again
    assert [drift.event.ts for drift in before] != [drift.event.ts for drift in again]  # it was judged otherwise
    assert before[0].event.episode == again[0].event.episode
    assert {drift.id for drift in before} & {drift.id for drift in again}


def test_two_alarms_of_a_device_keep_their_distance():
    """A sensor that comes loose drifts again and again; it is one thing to look at."""
    recording = people()[0]
    for turn, at in enumerate(range(600, 1500, 100)):
        recording = apply(
            recording, parse_drift(f"bias:{0.9 if turn % 2 == 0 else -0.9}@{at}"), np.random.default_rng(1)
        )
    alarms = sorted({item.ts for item in found(recording, kind("auto"))})
    assert alarms
    assert (np.diff(alarms) >= COOLDOWN_S).all()


def test_a_drift_that_stays_is_told_once_and_another_one_after_it_again():
    """What a device shows is its new normal, though people do not show it; else it is told every quarter hour."""
    alarms = []
    for seed in (2, 3):
        [calm] = simulate(1, 5400, seed, 1.7e9)
        turned = apply(calm, parse_drift("noise:0.3@1500"), np.random.default_rng(seed))
        twice = apply(turned, parse_drift("rotate:60@4500"), np.random.default_rng(seed))
        alarms.append(sorted({item.ts - calm.ts[0] for item in found(twice)}))
    assert [len(each) for each in alarms] == [2, 2]
    assert all(1500 < first < 1900 and second > 4500 for first, second in alarms)


def test_a_broken_channel_is_told_as_such_and_not_as_drift():
    """A sensor's fault is mended, not learned."""
    recording = people()[0]
    values = recording.values.copy()
    values[45_000:60_000, 10] = values[45_000, 10]
    said = found(replace(recording, values=values))
    assert [(item.channel, item.fault, item.ended) for item in said] == [
        ("userAcceleration.y", "stuck", False),
        ("userAcceleration.y", "stuck", True),
    ]
    assert 0 < said[0].ts - recording.ts[45_000] < 10
    assert 0 < said[1].ts - recording.ts[60_000] < 10
