"""What the retrain worker decides without training anything."""

from __future__ import annotations

import msgspec
import pytest

from schemas.envelope import envelope
from schemas.errors import Reject
from schemas.events import DriftDetected, ModelRegistered, OffsetRange, Position, QualityDegraded, TrainingWindow
from schemas.settings import Settings
from workers import retrain
from workers.dataset import unlearned_from
from workers.health import Health
from workers.jobs import Done
from workers.retrain import Retrainer
from workers.retrain_task import Champion, Declined, Result

DEVICE = "phone-07"


def drift(offset: int = 500, change: int = 400, partition: int = 2, device: str = DEVICE, model: str = "activity"):
    return DriftDetected(
        device=device,
        model=model,
        feature="gravity.x",
        statistic="mean",
        detector="adwin",
        severity="warning",
        effect=3.0,
        direction="up",
        before=0.0,
        after=1.0,
        ts=10.0,
        change_ts=5.0,
        position=Position("activity", partition, offset),
        change_position=Position("activity", partition, change),
        episode="e",
        test="statistic",
    )


def learned(version: str, start: int, end: int, partition: int = 2, device: str | None = None) -> ModelRegistered:
    window = TrainingWindow(
        topic="activity",
        ranges=[OffsetRange(0, 0, 9), OffsetRange(partition, start, end)],
        rows=1,
        sha256="",
        device=device,
    )
    return ModelRegistered(
        model="activity",
        version=version,
        run_id="r",
        winner="random-forest",
        candidates=[],
        window=window,
        digest=f"sha256:{version}",
        caused_by=[],
    )


def told(event, id="an-event"):
    return envelope(event, id=id, source="s", subject=DEVICE, time=0.0, root="root")


class Current:
    """Which version serves, as the `current-model` topic would say."""

    latest = None


class Trained:
    """In place of a child process: what it was asked to do."""

    def __init__(self, retrainer, cause, task):
        self.cause = cause
        self.task = task


@pytest.fixture
def retrainer(tmp_path, monkeypatch):
    monkeypatch.setattr(retrain, "ChildJob", Trained)
    monkeypatch.setattr(retrain, "_topic_id", lambda _: "topic-id")
    settings = Settings(_env_file=None, home=tmp_path, kafka_bootstrap="127.0.0.1:1", namespace="")
    retrainer = Retrainer(settings, Health("retrain"), Current())
    retrainer.registered = [learned("1", 0, 300)]
    return retrainer


def decided(job) -> dict[str, object]:
    assert isinstance(job, Done)
    [output] = job.poll()
    assert output.topic.name == "decisions"
    return msgspec.to_builtins(output.event.event)


def test_a_drift_after_everything_that_was_learned_is_trained_on(retrainer):
    """The loop's purpose."""
    job = retrainer.start(told(drift(offset=500)))
    assert isinstance(job, Trained)
    assert job.task.drift == drift(offset=500)
    assert job.task.event_id == "an-event"


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
def test_a_drift_that_a_newer_version_has_learned_from_is_not_trained_on_again(retrainer, version, covered):
    """One cause makes many drift events; each would cost a training that cannot find anything new."""
    retrainer.registered.append(version)
    job = retrainer.start(told(drift(offset=500)))
    assert isinstance(job, Done) is covered
    if covered:
        decision = decided(job)
        assert (decision["outcome"], decision["reason"]) == ("deferred", "covered")
        assert decision["concerns"] == ["an-event"]
        assert "version 2" in decision["detail"]


def test_the_version_to_beat_is_the_one_that_serves_not_the_newest(retrainer):
    """The newest may have been refused by the deploy worker."""
    retrainer.registered.append(learned("2", 300, 400))
    retrainer.current.latest = learned("1", 0, 0)
    assert retrainer.start(told(drift())).task.champion == Champion("1", "sha256:1")
    retrainer.current.latest = None  # nothing deployed yet
    assert retrainer.start(told(drift())).task.champion == Champion("2", "sha256:2")


def test_a_training_is_given_all_that_was_learned_before_oldest_first(retrainer):
    """Learning from recent data alone forgets what it lacks."""
    retrainer.registered.append(learned("2", 300, 400, device=DEVICE))
    assert [window.ranges[1].start for window in retrainer.start(told(drift())).task.previous] == [0, 300]


def test_a_sensors_fault_is_noted_and_never_trained_on(retrainer):
    """A model that has learned a broken sensor is broken for all others."""
    fault = QualityDegraded(
        device=DEVICE, model="activity", channel="gravity.x", fault="stuck", ts=0.0, position=Position("activity", 2, 1)
    )
    decision = decided(retrainer.start(told(fault)))
    assert (decision["outcome"], decision["reason"]) == ("ignored", "quality")


def test_a_drift_before_the_first_model_is_deferred_to_it(retrainer):
    """There is nothing yet that it could have hurt."""
    retrainer.registered.clear()
    decision = decided(retrainer.start(told(drift())))
    assert (decision["outcome"], decision["reason"]) == ("deferred", "no-model")


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
    retrainer.registered.clear()
    first = retrainer.idle()
    assert (first.task.drift, first.task.champion, first.task.previous) == (None, None, [])


def test_the_first_model_of_another_activity_topic_is_another_one(retrainer, monkeypatch):
    """An MLflow outlives a Kafka: the first model of the one before would be taken for ours, its readings gone."""
    retrainer.registered.clear()
    first = retrainer.idle().task.event_id
    assert retrainer.idle().task.event_id == first
    monkeypatch.setattr(retrain, "_topic_id", lambda _: "another")
    assert retrainer.idle().task.event_id != first


def test_what_another_worker_registered_meanwhile_is_read_when_the_partition_comes_back(retrainer, monkeypatch):
    """A worker that waited in reserve would train again what the other has trained."""
    newer = learned("2", 400, 600, device=DEVICE)
    monkeypatch.setattr(
        retrain, "read_events", lambda *_, **__: iter([type("Logged", (), {"envelope": told(newer)})()])
    )
    retrainer.assigned()
    assert decided(retrainer.start(told(drift())))["reason"] == "covered"


def test_a_redelivered_event_gives_the_same_event_ids(retrainer):
    """Whoever has seen an id drops the second one; so the chain shows each step once after any crash."""
    cause = told(drift())
    task = retrainer.start(cause).task
    for result in (Result(registered=learned("2", 0, 1)), Result(declined=Declined("held", "not-better", "detail"))):
        [first], [again] = retrainer.outputs(cause, result, task), retrainer.outputs(cause, result, task)
        assert first.event.id == again.event.id
        assert first.event.root == "root"


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
