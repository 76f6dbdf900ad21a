"""When a drift leads to a training, when it waits, and that none is ever lost."""

import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.envelope import envelope
from schemas.events import ModelRegistered, RetrainRequested
from tests.unit.controlling import DEVICE, World, deployed, drift, fault, learned, told
from workers.controller import Controller, Decided, Policy, Train


def queue(count, seconds, devices=1, seed=0):
    rng = random.Random(seed)
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    found = []
    for number, at in enumerate(times):
        device = rng.randrange(devices)
        event = drift(offset=1_000 + number, partition=device % 4, device=f"phone-{device:03d}")
        found.append((at, told(event, f"drift-{number}", at)))
    return found


@pytest.mark.parametrize("devices", [1, 7, 300])
def test_a_thousand_drifts_in_a_minute_make_at_most_two_trainings_and_none_goes_unanswered(devices):
    """A firmware update drifts a whole fleet at once; a training each would never end, and a drift dropped is lost."""
    world = World()
    world.consume(queue(1000, 60, devices), until=3600)
    assert 1 <= len(world.trained) <= 2
    assert world.concerned() >= {f"drift-{number}" for number in range(1000)}
    assert not world.controller.waiting


def test_the_same_drift_delivered_five_times_or_an_hour_later_makes_one_training():
    """Kafka delivers at least once, and a producer that crashes sends again."""
    world = World()
    first = told(drift(), "one")
    world.consume([(at, first) for at in (0, 0, 0, 1, 2, 3600)], until=7200, restarts=True)
    assert [train.lead for train in world.trained] == ["one"]


def test_a_drift_that_comes_during_cooldown_waits_and_starts_the_next_training():
    """The trailing edge: whoever drops it heals the first device and leaves the second."""
    world = World()
    second = told(drift(offset=2_000_000, device="phone-08"), "two", 40)
    world.consume([(0, told(drift(), "one")), (40, second)], until=200)
    assert [each.reason for each in world.decisions if each.concerns == ["two"]] == ["cooldown"]
    assert world.controller.state(world.now) == "cooldown"
    world.consume([], until=1000)
    assert [train.lead for train in world.trained] == ["one", "two"]
    assert world.controller.state(world.now) == "idle"


def test_what_waits_is_known_after_a_restart():
    """State is rebuilt from the topics alone: a worker that takes over must not forget what was deferred."""
    world = World()
    world.consume([(0, told(drift(), "one")), (40, told(drift(offset=2_000_000, device="p"), "two", 40))], until=60)
    world.restart()
    assert list(world.controller.waiting) == ["two"]
    assert world.controller.trainings == [30.0]
    world.consume([], until=1000)
    assert [train.lead for train in world.trained] == ["one", "two"]


def test_after_three_trainings_for_nothing_the_breaker_opens_and_later_lets_one_through():
    """A drift that no training heals would burn the machine all night."""
    world = World(Policy(cooldown_s=10, daily_trainings=100, breaker_s=3600), ends=lambda _: "rejected")
    many = [(100.0 * number, told(drift(offset=500 + number), f"d{number}", 100 * number)) for number in range(8)]
    world.consume(many, until=1000)
    assert len(world.trained) == 3
    assert {each.reason for each in world.decisions[3:]} == {"breaker"}
    world.consume([], until=4500)
    assert len(world.trained) == 4, "one is tried when the time is over"
    assert [each.id for each in world.trained[-1].drifts] == [f"d{number}" for number in range(8)]


def test_a_drift_that_did_not_hurt_is_looked_at_again_once_more_readings_have_come():
    """Five minutes may hold none of the bouts that a drift hurts; whoever settles it then leaves the loss for good."""
    hurts = iter(("unhurt", "promoted"))
    world = World(ends=lambda _: next(hurts))
    one = told(drift(), "one")
    world.consume([(0, one), (100, one)], until=200)
    assert len(world.trained) == 1, "not before its time, and not for a second delivery"
    assert world.controller.state(200) in ("idle", "cooldown")
    world.restart()
    world.consume([], until=2000)
    assert [(train.lead, train.attempt) for train in world.trained] == [("one", 0), ("one", 1)]
    assert not world.controller.waiting


@pytest.mark.parametrize("end", ["unhurt", "rejected"])
def test_a_drift_is_looked_at_again_twice_and_then_settled(end):
    """And its second looks are no further drifts that cannot be healed: they open no breaker."""
    world = World(ends=lambda _: end)
    world.consume([(0, told(drift(), "one"))], until=10_000)
    assert len(world.trained) == 3
    assert not world.controller.waiting
    assert world.controller.rejections == (end == "rejected")


def test_a_drift_that_was_looked_at_often_enough_is_settled_beside_a_newer_one():
    """It would be looked at a third time, and a fourth, with every new drift that joins it."""
    world = World()
    one, two = told(drift(), "one"), told(drift(offset=600), "two")
    for each in (one, two):
        world.controller.see(each)
    for attempt in range(2):
        world.decide("not-needed", "champion-unhurt", ["one"], attempt)
    world.decide("not-needed", "champion-unhurt", ["one", "two"], 2)
    assert list(world.controller.waiting) == ["two"]


def test_a_fault_of_which_no_end_was_told_does_not_hide_drifts_for_ever():
    """An agent whose detector began anew tells no end; who waits for it leaves the device unheard for a month."""
    world = World()
    world.consume([(0, told(fault(ts=0.0), "fault"))], until=1)
    for hour, outcomes in ((5, ["ignored"] * 2), (7, ["ignored"] * 2 + ["promoted"])):
        seen = drift(offset=500 + hour, ts=hour * 3600.0, change_ts=hour * 3600.0 - 5)
        world.consume([(hour * 3600.0, told(seen, f"at-{hour}", hour * 3600.0))], until=hour * 3600.0 + 60)
        assert [each.outcome for each in world.decisions] == outcomes


def test_the_days_budget_ends_trainings_until_the_next_day():
    """Compute is paid for."""
    world = World(Policy(cooldown_s=0, daily_trainings=2))
    many = [(100.0 * n, told(drift(offset=2_000_000 + n, device=f"p{n}"), f"d{n}", 100 * n)) for n in range(4)]
    world.consume(many, until=1000)
    assert len(world.trained) == 2
    assert [each.reason for each in world.decisions if each.about == "retrain"] == ["budget", "budget"]
    world.consume([], until=87_000)
    assert len(world.trained) == 3


def test_a_hold_keeps_drifts_waiting_until_it_is_released():
    """During an incident somebody has to be able to say: not now."""
    world = World()
    hold, release = (
        told(RetrainRequested(model="activity", action=action, by="ops"), action) for action in ("hold", "release")
    )
    world.consume([(0, hold), (1, told(drift(), "one", 1))], until=100, restarts=True)
    assert not world.trained
    assert [each.outcome for each in world.decisions] == ["holding", "deferred"]
    world.consume([(100, release)], until=200, restarts=True)
    assert [train.lead for train in world.trained] == ["one"]


@pytest.mark.parametrize("mode", ["periodic", "every-alarm"])
def test_a_hold_holds_whatever_the_policy(mode):
    """`--hold` says: no trainings from here on."""
    world = World(Policy(mode=mode, period_s=600))
    hold = told(RetrainRequested(model="activity", action="hold", by="ops"), "hold")
    world.consume([(0, hold), (1, told(drift(), "one", 1))], until=2000)
    assert not world.trained
    release = told(RetrainRequested(model="activity", action="release", by="ops"), "release", 2000)
    world.consume([(2000, release)], until=2500)
    assert len(world.trained) == 1


def fails(world, how):
    """The last version comes to nothing: it harms, is sent back by itself, or is refused."""
    version = world.controller.registered[-1].version
    [id] = [each.id for each in world.log if isinstance(each.event, ModelRegistered) and each.event.version == version]
    if how == "refused":
        world.decide("refused", "signature", [id], about="deploy")
        return
    world.publish(deployed(version, "1", caused_by=id), f"deployed-{version}", world.now)
    if how == "harmed":
        world.decide("harmed", "worse-after", [f"deployed-{version}"], about="verdict")
    back = envelope(
        deployed("1", version, "rollback"), id=f"back-{version}", source="s", subject="", time=world.now,
        root="a person" if how == "by hand" else "root",
    )  # fmt: skip
    world.log.append(back)
    world.controller.see(back)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("how", ["harmed", "sent back", "refused"])
def test_a_drift_whose_version_failed_is_trained_for_again_and_by_another_name(how, restarts):
    """It is not healed, and the agent tells it only once."""
    world = World(Policy(cooldown_s=100))
    world.consume([(0, told(drift(), "one"))], until=50)
    fails(world, how)
    if restarts:
        world.restart()
    world.consume([], until=100)
    assert len(world.trained) == 1, "the cooldown holds"
    world.consume([], until=300)
    first, second = world.trained
    assert [each.id for each in second.drifts] == ["one"]
    assert first.lead != second.lead, "or the version that failed would be found, and taken for the answer"
    fails(world, how)
    world.consume([], until=1000)
    fails(world, how)
    world.consume([], until=3000)
    assert len(world.trained) == 3, "a few times, not for ever"


def test_versions_that_fail_one_after_the_other_open_the_breaker():
    """Each was registered, as one that helps would be."""
    world = World(Policy(cooldown_s=10, breaker_s=3600, breaker_rejections=2))
    world.consume([(0, told(drift(), "one"))], until=50)
    for _ in range(2):
        fails(world, "harmed")
        world.consume([], until=world.now + 100)
    assert len(world.trained) == 2
    assert world.controller.rejections == 2


def test_what_a_person_took_out_of_service_is_not_trained_for_again():
    """They know why."""
    world = World(Policy(cooldown_s=10))
    world.consume([(0, told(drift(), "one"))], until=50)
    fails(world, "by hand")
    world.consume([], until=1000)
    assert len(world.trained) == 1


def test_a_sensors_fault_is_never_trained_on_and_neither_is_a_drift_of_that_time():
    """A model that has learned a broken sensor is broken for all others."""
    world = World()
    world.consume([(0, told(fault(), "f")), (1, told(drift(), "one", 1))], until=100)
    assert not world.trained
    assert [(each.outcome, each.reason, each.cause) for each in world.decisions] == [
        ("ignored", "quality", "sensor-fault")
    ] * 2
    later = drift(offset=900, ts=500.0, change_ts=400.0)
    world.consume([(100, told(fault(ts=20.0, ended=True), "g")), (101, told(later, "two", 101))], until=200)
    assert [train.lead for train in world.trained] == ["two"]


def test_a_fault_that_is_told_right_behind_the_drift_counts_already():
    """The detector may see the shift a moment before the quality gate is sure."""
    world = World()
    world.consume([(0, told(drift(), "one")), (0, told(fault(), "f"))], until=100)
    assert not world.trained


def test_an_uncertain_training_is_tried_again_with_more_data_and_then_given_up():
    """A held challenger may be right; five times without proof, each after twice the wait, it is not; nor the next."""
    world = World(Policy(cooldown_s=1000, breaker_rejections=9), ends=lambda _: "uncertain")
    world.consume([(0, told(drift(), "one")), (9000, told(drift(device="p"), "two", 9000))], until=20_000)
    assert [train.attempt for train in world.trained] == [0, 1, 2, 3, 4] * 2
    held = [each.event.ts for each in world.log if getattr(each.event, "outcome", None) == "held"]
    for mine in (held[:5], held[5:]):
        waits = [later - sooner for sooner, later in pairwise(mine)]
        assert all(1.5 * waits[n] < waits[n + 1] < 2.5 * waits[n] for n in range(2))
        assert max(waits) < 1100, "at most the cooldown"
    assert (world.decisions[-1].outcome, world.decisions[-1].reason) == ("given-up", "uncertain")
    assert world.controller.state(world.now) == "idle"


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_clock_that_was_off_by_an_hour_does_not_lock_retraining_out_for_an_hour(wrong):
    """The last training's time stems from a clock that was mended since."""
    controller = Controller("activity", Policy())
    controller.see(told(learned("1", 0, 300), "first"))
    controller.see(told(learned("2", 300, 400, device="p"), "second", 10_000 + wrong))
    assert isinstance(controller.answer(told(drift(), "one"), 10_000), Train)


@pytest.mark.parametrize("mode", ["never", "periodic"])
def test_a_policy_that_does_not_act_on_drifts_says_so(mode):
    """What is not done gets its reason."""
    world = World(Policy(mode=mode, period_s=600))
    world.consume([(0, told(drift(), "one"))], until=1500)
    assert world.decisions[0].reason == "policy"
    assert len(world.trained) == {"never": 0, "periodic": 2}[mode]


def test_every_alarm_trains_for_each():
    """The naive policy, to measure against."""
    world = World(Policy(mode="every-alarm"))
    world.consume(queue(5, 60), until=600)
    assert len(world.trained) == 5


def test_a_drift_before_the_first_model_is_deferred_to_it():
    """There is nothing yet that it could have hurt."""
    controller = Controller("activity", Policy())
    answer = controller.answer(told(drift()), 0.0)
    assert isinstance(answer, Decided)
    assert (answer.outcome, answer.reason) == ("deferred", "no-model")


@pytest.mark.parametrize(
    ("version", "covered"),
    [
        (learned("2", 400, 501, device=DEVICE), True),
        (learned("2", 400, 501), True),  # of all devices
        (learned("2", 400, 500, device=DEVICE), False),  # the end is not in it
        (learned("2", 501, 600, device=DEVICE), False),
        (learned("2", 400, 600, device="phone-08"), False),
        (learned("2", 400, 600, partition=3, device=DEVICE), False),
    ],
)
def test_a_drift_that_a_newer_version_has_learned_from_is_not_trained_on_again(version, covered):
    """One cause makes many drift events; each would cost a training that cannot find anything new."""
    controller = Controller("activity", Policy(cooldown_s=0))
    controller.see(told(learned("1", 0, 300), "first"))
    controller.see(told(version, "second"))
    answer = controller.answer(told(drift(offset=500)), 10.0)
    assert isinstance(answer, Decided) is covered
    if covered:
        assert (answer.outcome, answer.reason) == ("deferred", "covered")
        assert "version 2" in answer.detail


def test_a_topic_that_was_made_anew_begins_at_offset_zero_and_its_drifts_are_not_taken_for_learned():
    """Offsets alone would say that the old topic's model has seen them."""
    controller = Controller("activity", Policy(cooldown_s=0))
    controller.see(told(learned("1", 0, 300), "first"))
    old = learned("2", 0, 10_000)
    controller.see(told(msgspec.structs.replace(old, window=msgspec.structs.replace(old.window, to_ts=4.0)), "second"))
    assert isinstance(controller.answer(told(drift(offset=500, change_ts=5.0)), 10.0), Train)
    assert isinstance(controller.answer(told(drift(offset=500, change_ts=3.0)), 10.0), Decided)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 5), st.booleans()), max_size=25),
    st.sampled_from(["promoted", "rejected", "uncertain"]),
)
def test_whatever_comes_every_drift_is_answered_and_a_restart_changes_nothing(events, end):
    """The promise itself: same topics, same decisions; nothing dropped; one training for an id at a time."""
    come = sorted(events)
    made = [
        (
            float(at),
            told(drift(offset=1_000 + n, device=f"p{device}") if not faulty else fault(f"p{device}"), f"e{n}", at),
        )
        for n, (at, device, faulty) in enumerate(come)
    ]
    steady, shaken = (World(ends=lambda _: end) for _ in range(2))
    steady.consume(made, until=200_000)
    shaken.consume(made, until=200_000, restarts=True)
    assert steady.log == shaken.log
    assert steady.concerned() >= {each.id for _, each in made}
    assert not steady.controller.waiting
