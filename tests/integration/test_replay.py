"""Readings read back from Kafka: the agent's windows again, or an honest no."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import Retry
from schemas.events import OffsetRange
from schemas.topology import ACTIVITY
from streams import topics
from streams.kafka import producer_config
from streams.producer import messages, produce
from streams.replay import WindowExpired, end_ranges, replay
from streams.simulator import simulate
from streams.windows import NO_LABEL, Readings, Windows, cut
from workers.dataset import piece_of

NOW = 1.7e9


@pytest.fixture
def people(settings):
    """Three people's readings on the topic, as singles and batches, some sent twice, with nonsense in between."""
    topics.create(settings)
    recordings = simulate(3, 30, seed=6, start_ts=NOW)
    produce(settings, recordings[:2], batch=40)
    produce(settings, recordings[2:])
    producer = Producer(producer_config(settings))
    for key, value in [
        *list(messages(recordings[:1], 40))[-2:],
        (b"phone-01", b"not json"),
        (b"x", b"{}"),
        (None, None),
    ]:
        producer.produce(settings.topic(ACTIVITY), key=key, value=value)
    assert producer.flush(10) == 0
    return recordings


def assert_same(found, recording):
    """The windows are those that the agent's code cuts from the recording (whose floats are sent with 6 digits)."""
    expected, _ = cut(Readings(recording.ts, recording.values, recording.labels, np.zeros(len(recording), np.int64)))
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    for name in ("start", "end", "labels"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)


def test_ranges_give_the_windows_that_the_agent_saw(settings, people):
    """The model learns from what the detector judged."""
    found = replay(settings, end_ranges(settings))
    assert set(found.windows) == {recording.device for recording in people}
    for recording in people:
        assert_same(found.windows[recording.device], recording)
    assert found.window.rows == 3 * 30 * 50


def test_the_same_ranges_give_the_same_windows_and_digest(settings, people):
    """A training can be repeated, and checked, after the topic has grown."""
    ranges = end_ranges(settings)
    first = replay(settings, ranges, ["phone-02"])
    produce(settings, [person.starting_at(NOW + 100) for person in people], batch=40)
    second = replay(settings, ranges, ["phone-02"])
    assert first.window == second.window
    assert len(first.window.sha256) == 64
    for name in Windows.__slots__:
        np.testing.assert_array_equal(
            getattr(first.windows["phone-02"], name), getattr(second.windows["phone-02"], name)
        )


def test_one_device_is_read_without_the_others(settings, people):
    """A drift is one device's."""
    found = replay(settings, end_ranges(settings), ["phone-03"])
    assert list(found.windows) == ["phone-03"]
    assert found.window.rows == 1500
    assert replay(settings, end_ranges(settings), ["phone-99"]).windows == {}


def test_a_range_that_ends_in_a_transactions_marker_ends(settings):
    """Markers are never delivered: waiting for the last offset would be waiting for ever."""
    topics.create(settings)
    producer = Producer(producer_config(settings, **{"transactional.id": f"{settings.namespace}sensor"}))
    producer.init_transactions(20)
    for commit in (True, False):
        producer.begin_transaction()
        for key, value in messages(simulate(1, 10, seed=1, start_ts=NOW + 100 * commit), 100):
            producer.produce(settings.topic(ACTIVITY), key=key, value=value)
        producer.flush(10)
        producer.commit_transaction(20) if commit else producer.abort_transaction(20)
    assert replay(settings, end_ranges(settings)).window.rows == 500


def test_a_window_that_retention_has_passed_is_expired_not_shortened(settings, people):
    """Training on other rows than those pinned would be a lie in the model's papers."""
    ranges = end_ranges(settings)
    longest = max(ranges, key=lambda each: each.end)
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    place = TopicPartition(settings.topic(ACTIVITY), longest.partition, 3)
    for done in admin.delete_records([place]).values():
        done.result(10)
    with pytest.raises(WindowExpired, match="begins at 3, the window at 0"):
        replay(settings, ranges)
    still = OffsetRange(longest.partition, 3, longest.end)
    assert replay(settings, [still]).window.rows > 0


def test_of_a_long_topic_only_labelled_windows_and_no_more_than_asked_for_are_kept(settings):
    """A worker that reads a day of everybody's readings into memory is killed, begins again, and is killed again."""
    topics.create(settings)
    [person] = simulate(1, 300, seed=6, start_ts=NOW)
    person.labels[: 100 * 50] = NO_LABEL
    assert produce(settings, [person]).complete
    everything, labelled = (replay(settings, end_ranges(settings), labelled=each) for each in (False, True))
    kept = everything.windows["phone-01"].chosen(everything.windows["phone-01"].labels != NO_LABEL)
    np.testing.assert_array_equal(labelled.windows["phone-01"].values, kept.values)
    assert labelled.window == everything.window
    some = replay(settings, end_ranges(settings), labelled=True, most=40)
    count = len(some.windows["phone-01"])
    assert 40 <= count < len(kept)
    np.testing.assert_array_equal(some.windows["phone-01"].values, kept.values[:count])
    again = replay(settings, some.window.ranges, labelled=True)
    assert again.window == some.window, "what was pinned is what was read"


@pytest.mark.parametrize("labelled", [False, True])
def test_a_span_in_which_readings_were_refused_is_not_learned_from(settings, labelled):
    """What is left of it looks sound; the agent has told of a sensor that does not measure."""
    topics.create(settings)
    [person] = simulate(1, 300, seed=6, start_ts=NOW)
    broken = replace(person, values=np.where(np.arange(12) == 9, 50.0, person.values))  # g: no sensor measures that
    producer = Producer(producer_config(settings))
    sent = [list(messages([each], 50)) for each in (person, broken)]
    for second, (good, bad) in enumerate(zip(*sent, strict=True)):
        for key, value in [good, bad] if 100 <= second < 160 else [good]:
            producer.produce(settings.topic(ACTIVITY), key=key, value=value)
    assert producer.flush(10) == 0
    found = replay(settings, end_ranges(settings), labelled=labelled)
    windows, broken = found.windows["phone-01"], found.broken["phone-01"]
    within = (windows.end > NOW + 100 + 5) & (windows.end < NOW + 160)
    outside = (windows.end < NOW + 100) | (windows.end > NOW + 160 + 10)
    assert within.any()
    assert broken[within].all()
    assert not broken[outside].any()
    piece = piece_of(found, settings)
    assert len(piece) == (~broken & (windows.labels != NO_LABEL)).sum()


def test_a_range_beyond_the_end_is_another_topics(settings, people):
    """After a topic was made anew its offsets begin at 0 again."""
    with pytest.raises(WindowExpired, match="another topic"):
        replay(settings, [OffsetRange(0, 0, 10**6)])


def test_an_absent_broker_is_a_retry(settings):
    """Not an expired window: the readings may well be there."""
    away = settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:9"})
    with pytest.raises(Retry):
        end_ranges(away, timeout=1)
