"""What the retrain worker decides without training anything."""

from __future__ import annotations

import threading

import msgspec
import pytest

from schemas.errors import Reject
from schemas.events import RetrainRequested, event_id
from schemas.settings import Settings
from schemas.topology import MODEL_REGISTERED
from streams.eventlog import Logged
from tests.unit.controlling import DEVICE, drift, fault, learned, told
from workers import retrain
from workers.controller import Controller
from workers.dataset import unlearned_from
from workers.health import Health
from workers.jobs import Done
from workers.retrain import Retrainer, policy_of
from workers.retrain_task import Champion, Declined, Result


class Current:
    """Which version serves, as the `current-model` topic would say."""

    latest = None


class Trained:
    """In place of a child process: what it was asked to do."""

    def __init__(self, retrainer, drifts, task):
        self.drifts = drifts
        self.task = task


@pytest.fixture
def retrainer(tmp_path, monkeypatch):
    monkeypatch.setattr(retrain, "ChildJob", Trained)
    monkeypatch.setattr(retrain, "_topic_id", lambda _: "topic-id")
    settings = Settings(_env_file=None, home=tmp_path, kafka_bootstrap="127.0.0.1:1", namespace="", cooldown_seconds=0)
    retrainer = Retrainer(settings, Health("retrain"), Current(), threading.Event())
    retrainer.controller = Controller("activity", policy_of(settings))
    retrainer.controller.see(told(learned("1", 0, 300), "first"))
    monkeypatch.setattr(retrainer, "_ahead", list)
    return retrainer


def known(retrainer, version):
    retrainer.controller.see(told(version, f"registered-{version.version}"))


def decided(job) -> dict[str, object]:
    assert isinstance(job, Done)
    [output] = job.poll()
    assert output.topic.name == "decisions"
    return msgspec.to_builtins(output.event.event)


def test_a_drift_after_everything_that_was_learned_is_trained_on(retrainer):
    """The loop's purpose."""
    job = retrainer.start(told(drift(offset=500)))
    assert isinstance(job, Trained)
    assert job.task.drifts == [drift(offset=500)]
    assert job.task.caused_by == ["an-event"]
    assert job.task.event_id == "an-event"


def test_the_version_to_beat_is_the_one_that_serves_not_the_newest(retrainer):
    """The newest may have been refused by the deploy worker."""
    known(retrainer, learned("2", 300, 400))
    retrainer.current.latest = learned("1", 0, 0)
    assert retrainer.start(told(drift(), "one")).task.champion == Champion("1", "sha256:1", "run-1")
    retrainer.current.latest = None  # nothing deployed yet
    assert retrainer.start(told(drift(), "two")).task.champion == Champion("2", "sha256:2", "run-2")


def test_a_training_is_given_all_that_was_learned_before_oldest_first(retrainer):
    """Learning from recent data alone forgets what it lacks."""
    known(retrainer, learned("2", 300, 400, device=DEVICE))
    assert [window.ranges[0].start for window in retrainer.start(told(drift())).task.previous] == [0, 300]


def test_a_sensors_fault_is_noted_and_never_trained_on(retrainer):
    """A model that has learned a broken sensor is broken for all others."""
    decision = decided(retrainer.start(told(fault())))
    assert (decision["outcome"], decision["reason"]) == ("ignored", "quality")


def test_an_event_of_another_kind_is_rejected_as_one_that_can_never_work(retrainer):
    """It goes to the dead letters with its reason instead of stopping the loop."""
    with pytest.raises(Reject, match="schema: ModelRegistered does not belong on drift"):
        retrainer.start(told(learned("1", 0, 1)))


def test_another_models_drift_is_left_to_another_worker(retrainer):
    """Two loops may share a topic; one must not answer for the other."""
    job = retrainer.start(told(drift(model="gestures")))
    assert isinstance(job, Done)
    assert not job.poll()


def test_without_a_model_the_first_one_is_trained_unasked_and_then_no_more(retrainer):
    """Nobody has drifted from a model that does not exist, so no event would ever ask for it."""
    assert retrainer.idle() is None
    retrainer.controller = Controller("activity", retrainer.controller.policy)
    first = retrainer.idle()
    assert (first.task.drifts, first.task.champion, first.task.previous) == ([], None, [])


def test_the_first_model_of_another_activity_topic_is_another_one(retrainer, monkeypatch):
    """An MLflow outlives a Kafka: the first model of the one before would be taken for ours, its readings gone."""
    retrainer.controller = Controller("activity", retrainer.controller.policy)
    first = retrainer.idle().task.event_id
    assert retrainer.idle().task.event_id == first
    monkeypatch.setattr(retrain, "_topic_id", lambda _: "another")
    assert retrainer.idle().task.event_id != first


def test_what_another_worker_registered_meanwhile_is_read_when_the_partition_comes_back(retrainer, monkeypatch):
    """A worker that waited in reserve would train again what the other has trained."""
    found = [learned("1", 0, 300), learned("2", 400, 600, device=DEVICE)]
    monkeypatch.setattr(
        retrain,
        "read_events",
        lambda *_, **__: iter([Logged(MODEL_REGISTERED, 0, n, n, told(each, str(n))) for n, each in enumerate(found)]),
    )
    retrainer.assigned()
    assert decided(retrainer.start(told(drift())))["reason"] == "covered"


def test_an_event_that_comes_again_gives_the_same_event_ids(retrainer):
    """Whoever has seen an id drops the second one; so the chain shows each step once after any crash."""
    job = retrainer.start(told(drift()))
    for result in (
        Result(registered=learned("2", 0, 1)),
        Result(declined=Declined("rejected", "not-better", "detail")),
    ):
        [first], [again] = (retrainer.outputs(job.drifts, result, job.task) for _ in range(2))
        assert first.event.id == again.event.id
        assert first.event.root == "root"


def test_a_promotion_is_told_with_the_gates_numbers_beside_the_version(retrainer):
    """Whoever asks why a model changed wants the reason, not only that it did."""
    job = retrainer.start(told(drift()))
    promoted = Declined("promoted", "better-on-recent", "detail", {"gain": 0.2}, "carrying")
    version, decision = retrainer.outputs(job.drifts, Result(learned("2", 0, 1), promoted), job.task)
    assert version.topic is MODEL_REGISTERED
    assert version.event.id == event_id("registered", "an-event")
    made = decision.event.event
    assert (made.about, made.outcome, made.cause, made.concerns) == ("promote", "promoted", "carrying", ["an-event"])
    assert made.numbers == {"gain": 0.2}


def test_a_drift_that_was_trained_on_is_not_trained_on_again_when_it_is_delivered_again(retrainer):
    """At least once is what Kafka promises; once is what we do."""
    job = retrainer.start(told(drift()))
    retrainer.committed(retrainer.outputs(job.drifts, Result(learned("2", 0, 1, caused_by=["an-event"])), job.task))
    again = retrainer.start(told(drift()))
    assert isinstance(again, Done)
    assert not again.poll()


def test_the_state_that_people_are_told_is_the_controllers(retrainer):
    """`driftloop status` must not say idle while drifts wait."""
    assert retrainer.idle() is None
    assert retrainer.health.doing == "idle"
    for phase, state in (("collecting: 3 of 9", "collecting"), ("training", "training"), ("", "idle")):
        retrainer.under_way(phase)
        assert retrainer.controller.state(0.0) == state
    held = retrainer.start(told(RetrainRequested(model="activity", action="hold", by="ops"), "hold"))
    retrainer.committed(held.poll())
    retrainer.committed(retrainer.start(told(drift())).poll())
    assert retrainer.idle() is None
    assert retrainer.health.doing == "suspected, 1 drifts wait"


def test_a_request_by_hand_trains_at_once_even_though_nothing_hurts(retrainer):
    """A hand on the wheel goes before cooldown and budget; the gate still judges."""
    job = retrainer.start(told(RetrainRequested(model="activity", action="now", by="ops", device="p"), "asked"))
    assert (job.task.forced, job.task.device, job.task.caused_by, job.task.drifts) == (True, "p", ["asked"], [])


@pytest.mark.parametrize(
    ("previous", "start"),
    [
        ([], 400),
        ([learned("1", 0, 300)], 400),
        ([learned("1", 0, 450)], 450),
        ([learned("1", 0, 450), learned("2", 0, 470, device=DEVICE)], 470),
        ([learned("1", 0, 450, device="phone-08")], 400),
        ([learned("1", 0, 450, partition=3)], 400),
    ],
)
def test_recent_data_is_what_no_version_has_learned_from(previous, start):
    """A change is seen late; a champion scored on its own training data looks unhurt."""
    assert unlearned_from(drift(change=400), [item.window for item in previous]) == start
