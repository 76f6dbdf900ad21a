"""One event at a time against a real Kafka: what a job promises is there once, or not at all, whatever dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer

from schemas.envelope import Envelope, encode, envelope
from schemas.errors import Reject, Retry, Stop
from schemas.events import DecisionMade, event_id
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL, DECISIONS, DRIFT, RETRAIN_GROUP, dead_letters
from streams import topics
from streams.current_model import CurrentModel
from streams.kafka import producer_config
from tests.integration.worker_processes import (
    Running,
    changed,
    consumed,
    events,
    eventually,
    loop,
    records,
    running,
    send,
    send_raw,
)
from workers.jobs import Done, Job, Output, ThreadJob


def event(name: str, root: str | None = None) -> Envelope:
    """An event that has nothing to it but its id."""
    decision = DecisionMade(
        model="activity", about="retrain", outcome="o", reason="r", detail=name, concerns=[], ts=0.0
    )
    return envelope(decision, id=name, source="test", subject="", time=1.0, root=root)


def answer(to: Envelope) -> Output:
    return Output(DECISIONS, event(event_id("answer", to.id), to.id))


class Scripted:
    """A handler whose work is given as a function; it notes what it is told."""

    name = "retrain"
    topic = DRIFT
    group = RETRAIN_GROUP
    mends = False

    def __init__(self, work: Callable[[Envelope], Job | None] | None = None) -> None:
        self.work = work or (lambda _: None)
        self.started: list[str] = []
        self.published: list[str] = []
        self.gained = 0
        self.between: Callable[[], Job | None] = lambda: None

    def assigned(self) -> None:
        self.gained += 1

    def start(self, envelope: Envelope) -> Job:
        self.started.append(envelope.id)
        return self.work(envelope) or Done(answer(envelope))

    def idle(self) -> Job | None:
        return self.between()

    def committed(self, outputs: Sequence[Output]) -> None:
        self.published += [output.event.id for output in outputs if output.event]


@pytest.fixture
def ready(settings: Settings) -> Settings:
    topics.create(settings)
    return settings


def answered(settings: Settings) -> list[str]:
    try:
        return [each.root for each in events(settings, DECISIONS)]
    except Retry:  # a broker that has just thawed
        return []


def after(settings: Settings) -> int:
    return consumed(settings, DRIFT, RETRAIN_GROUP)


def test_a_jobs_outputs_and_its_consumed_offset_become_visible_together(ready):
    """With one but not the other, a crash would lose the answer or give it twice."""
    handler = Scripted()
    send(ready, DRIFT, event("a"), event("b"))
    with loop(ready, handler):
        eventually(lambda: answered(ready) == ["a", "b"])
        eventually(lambda: after(ready) == 2)
    assert handler.started == ["a", "b"]
    assert handler.published == [event_id("answer", "a"), event_id("answer", "b")]


def test_what_serves_is_mended_while_an_event_waits_to_be_tried_again(ready):
    """A registry that is away for a night must not keep a crashed server from being brought back."""
    mended, away = [], threading.Event()

    def work(each: Envelope) -> Job:
        if not away.is_set():
            raise Retry("the registry is away")
        return Done(answer(each))

    def mend() -> Job:
        mended.append(time.monotonic())
        return ThreadJob(lambda _: [])

    handler = Scripted(work)
    handler.mends, handler.between = True, mend
    send(ready, DRIFT, event("a"), event("b"))
    with loop(ready, handler):
        eventually(lambda: len(handler.started) >= 2, what="tried again")
        before = len(mended)
        eventually(lambda: len(mended) > before + 3)
        assert set(handler.started) == {"a"}, "the next one waits its turn"
        assert not answered(ready)
        assert after(ready) < 1, "what is mended commits no event"
        away.set()
        eventually(lambda: answered(ready) == ["a", "b"])
        eventually(lambda: after(ready) == 2)


def test_a_worker_that_cannot_work_for_long_says_that_it_is_not_ready(ready, monkeypatch):
    """Whoever watches at night sees a process that runs, and nothing else."""
    monkeypatch.setattr("workers.jobs.UNREADY_S", 1.5)
    away = threading.Event()

    def work(each: Envelope) -> Job:
        if not away.is_set():
            raise Retry("MLflow is away")
        return Done(answer(each))

    send(ready, DRIFT, event("a"))
    handler = Scripted(work)
    with loop(ready, handler) as made:
        eventually(lambda: handler.started)
        assert made.health.ready(), "a moment is nothing"
        eventually(lambda: not made.health.ready())
        away.set()
        eventually(lambda: answered(ready) == ["a"])
        eventually(made.health.ready)


def test_a_record_of_any_size_that_the_broker_takes_is_dead_lettered(ready):
    """One that no producer of ours may write would stop the worker, and stop it again at each start."""
    producer = Producer(producer_config(ready, **{"message.max.bytes": 4_000_000}))
    producer.produce(ready.topic(DRIFT), value=b"{" + b"x" * 3_000_000)
    assert producer.flush(10) == 0
    send(ready, DRIFT, event("a"))
    with loop(ready, Scripted()):
        eventually(lambda: answered(ready) == ["a"])
    [letter] = records(ready, dead_letters(DRIFT))
    assert len(letter.value()) > 900_000


def test_an_event_without_an_answer_is_consumed_all_the_same(ready):
    """Another model's event must not come again after each restart."""
    handler = Scripted(lambda _: Done())
    send(ready, DRIFT, event("a"))
    with loop(ready, handler):
        eventually(lambda: after(ready) == 1)
    assert answered(ready) == []


def test_a_job_longer_than_the_session_keeps_its_partition_and_the_loop_goes_on_turning(ready):
    """Minutes of training look like a dead consumer to Kafka, unless somebody polls."""
    release = threading.Event()
    handler = Scripted(lambda each: ThreadJob(lambda _: [answer(each)] if release.wait(60) else []))
    send(ready, DRIFT, event("a"), event("b"))
    with loop(ready, handler) as made:
        eventually(lambda: handler.started == ["a"])
        time.sleep(13)  # past the session's 10 s
        assert made.health.idle_seconds < 2, "the loop stands still"
        assert handler.gained == 1
        release.set()
        eventually(lambda: answered(ready) == ["a", "b"])
    assert handler.started == ["a", "b"], "once each"


def test_a_world_that_is_not_ready_is_asked_again_and_the_event_kept(ready):
    """Retry: an absent MLflow must cost time, never an event."""
    tries: list[float] = []

    def work(each: Envelope) -> Job | None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Retry("MLflow is away")
        return None

    handler = Scripted(work)
    send(ready, DRIFT, event("a"))
    with loop(ready, handler) as made:
        eventually(lambda: len(tries) == 1)
        eventually(lambda: made.health.doing == "waiting: MLflow is away")
        assert after(ready) < 0
        eventually(lambda: answered(ready) == ["a"])
    assert tries[2] - tries[1] > tries[1] - tries[0] >= 1, "each wait is longer than the one before"


def test_a_retry_of_what_is_done_between_events_does_not_hold_them_up(ready):
    """A dead version that cannot be brought back must not keep a newer one from being deployed."""

    def never(_: object) -> Sequence[Output]:
        raise Retry("MLflow is away")

    handler = Scripted()
    handler.between = lambda: ThreadJob(never)
    with loop(ready, handler) as made:
        eventually(lambda: made.health.doing.startswith("waiting"))
        made.loop.again_at = time.monotonic() + 60  # the waits grow; this one for as long as an outage
        send(ready, DRIFT, event("a"))
        eventually(lambda: answered(ready) == ["a"], seconds=3)


def test_an_event_that_comes_during_a_job_between_events_is_worked_on_after_it(ready):
    """The first training takes minutes; its end must not pass for the end of an event that came meanwhile."""
    release = threading.Event()

    def wait(_: object) -> Sequence[Output]:
        release.wait(60)
        return [Output(DECISIONS, event("between"))]

    handler = Scripted()
    jobs = iter([ThreadJob(wait)])
    handler.between = lambda: next(jobs, None)
    with loop(ready, handler) as made:
        eventually(lambda: made.loop.job)
        send(ready, DRIFT, event("a"))
        time.sleep(3)
        assert handler.started == []
        release.set()
        eventually(lambda: answered(ready) == ["between", "a"])
        eventually(lambda: after(ready) == 1)


def test_a_rejected_event_goes_to_the_dead_letters_as_it_came_and_the_next_is_worked_on(ready):
    """One poison message must neither stop the loop nor vanish."""

    def work(each: Envelope) -> Job | None:
        if each.id == "bad":
            raise Reject("schema", "it is bad")
        return None

    bad = event("bad")
    send(ready, DRIFT, bad, event("good"))
    with loop(ready, Scripted(work)):
        eventually(lambda: answered(ready) == ["good"])
    [letter] = records(ready, dead_letters(DRIFT))
    key, value, headers = encode(bad)
    assert (letter.key(), letter.value()) == (key, value)
    found = dict(letter.headers())
    assert found.items() >= dict(headers).items()
    assert (found["dlq.class"], found["dlq.reason"]) == (b"schema", b"it is bad")
    assert (found["dlq.topic"], found["dlq.partition"], found["dlq.offset"]) == (
        ready.topic(DRIFT).encode(),
        b"0",
        b"0",
    )


def test_what_is_no_event_of_ours_is_dead_lettered_with_its_class(ready):
    """Anybody may write to a topic, and a newer program may write what this one does not know."""
    key, value, headers = encode(event("new"))
    newer = [(name, content.replace(b".v1", b".v2")) for name, content in headers]
    send_raw(ready, DRIFT, (key, value, newer), (b"k", b"\xff\xfe", []), (None, None, []))
    send(ready, DRIFT, event("good"))
    with loop(ready, Scripted()):
        eventually(lambda: answered(ready) == ["good"])
    letters = records(ready, dead_letters(DRIFT))
    assert dict(letters[0].headers())["dlq.class"] == b"schema-unsupported"
    assert [each.value() for each in letters] == [value, b"\xff\xfe", None]


SLOW = """
import sys, threading, time
sys.path.insert(0, {root!r})
from tests.integration.test_jobs import Scripted, answer
from schemas.settings import load_settings
from workers.health import Health
from workers.jobs import JobLoop, ThreadJob
from workers.startup import stop_on_signals

def work(envelope):
    print("working", flush=True)
    def wait(cancelled):
        while not cancelled():
            time.sleep(0.1)
        return [answer(envelope)]
    return ThreadJob(wait)

JobLoop(load_settings(), Scripted(work), Health("slow"), stop_on_signals()).run()
"""


@contextmanager
def busy(settings: Settings, tmp_path: Path):
    """A worker process in the middle of a job that will never end."""
    log = tmp_path / "slow.log"
    program = SLOW.format(root=str(Path(__file__).parents[2]))
    with running(settings, "-c", program, log=log) as process:
        eventually(lambda: b"working" in log.read_bytes(), what=log.read_text)
        yield process


def test_after_a_kill_in_the_middle_of_a_job_the_event_comes_again_at_once_and_is_answered_once(ready, tmp_path):
    """Static membership: nobody waits for a session to time out, and no answer is there twice."""
    send(ready, DRIFT, event("a"))
    with busy(ready, tmp_path) as process:
        process.kill()
        process.wait()
    assert answered(ready) == []
    begun = time.monotonic()
    with loop(ready, Scripted()):
        eventually(lambda: answered(ready) == ["a"])
        assert time.monotonic() - begun < 8
        eventually(lambda: after(ready) == 1)
    assert [each.id for each in events(ready, DECISIONS)] == [event_id("answer", "a")]


def test_a_stop_in_the_middle_of_a_job_is_quick_and_clean_and_the_event_is_done_again(ready, tmp_path):
    """A deployment of ours is no failure: exit code 0, nothing lost."""
    send(ready, DRIFT, event("a"))
    with busy(ready, tmp_path) as process:
        process.terminate()
        assert process.wait(10) == 0
    assert answered(ready) == []
    with loop(ready, Scripted()):
        eventually(lambda: answered(ready) == ["a"])


def test_a_second_worker_in_the_same_slot_ends_the_first_one(ready):
    """Two that both believe to be the one would answer twice; the younger wins, the older must not go on."""
    handler = Scripted()
    with loop(ready, handler) as first:
        eventually(lambda: first.loop.joined)
        with loop(ready, Scripted()) as second:
            send(ready, DRIFT, event("a"))
            eventually(lambda: isinstance(first.error, Stop) or answered(ready))
            eventually(lambda: isinstance(first.error, Stop), what=lambda: first.error)
            eventually(lambda: answered(ready) == ["a"])
            assert second.error is None


def test_a_worker_in_another_slot_takes_over_when_the_first_dies(ready, tmp_path):
    """The reserve has to notice within the session's 10 s, and to learn anew what the first one did."""
    send(ready, DRIFT, event("a"))
    reserve = Scripted()
    with busy(ready, tmp_path) as process, loop(changed(ready, slot="2"), reserve) as made:
        eventually(lambda: made.loop.joined, seconds=20)
        first = reserve.gained
        process.kill()
        eventually(lambda: answered(ready) == ["a"], seconds=25)
        assert reserve.gained >= first


def test_an_event_that_a_rebalance_takes_away_in_mid_job_is_done_again(ready):
    """A second worker joins: the first one's job is cancelled and whoever gets the event finishes it."""
    cancelled = threading.Event()
    blocking = [True]

    def work(each: Envelope) -> Job | None:
        if not blocking:
            return None
        blocking.clear()

        def wait(asked: Callable[[], bool]) -> Sequence[Output]:
            while not asked():
                time.sleep(0.05)
            cancelled.set()
            return [answer(each)]

        return ThreadJob(wait)

    send(ready, DRIFT, event("a"), event("b"))
    with loop(ready, Scripted(work)) as first:
        eventually(lambda: first.loop.job)
        with loop(changed(ready, slot="2"), Scripted(work)):
            eventually(cancelled.is_set)
            eventually(lambda: answered(ready) == ["a", "b"])


def test_a_broker_that_freezes_in_mid_transaction_costs_time_and_nothing_else(ready, kafka_pid):
    """Frozen for longer than the session, it takes the partition away: then the worker ends, and its successor answers.

    Either way there is one answer, and /live says yes while the worker waits.
    """
    release = threading.Event()

    def wait(each: Envelope) -> Sequence[Output]:
        release.wait(60)
        return [answer(each)]

    handler = Scripted(lambda each: ThreadJob(lambda _: wait(each)))
    send(ready, DRIFT, event("a"))
    with loop(ready, handler) as made:
        eventually(lambda: handler.started)
        os.kill(kafka_pid, signal.SIGSTOP)
        try:
            release.set()
            time.sleep(16)  # past one try
            assert made.error is None
            assert made.health.idle_seconds < 14
        finally:
            os.kill(kafka_pid, signal.SIGCONT)
        eventually(lambda: isinstance(made.error, Stop) or answered(ready))
    send(ready, DRIFT, event("b"))
    with loop(ready, Scripted()):
        eventually(lambda: answered(ready) == ["a", "b"])


def test_a_stop_while_the_broker_is_away_is_clean(settings, tmp_path):
    """SIGTERM must not look like a failure because something else fails."""
    away = changed(settings, kafka_bootstrap="127.0.0.1:1")
    made = Running(away, Scripted())
    time.sleep(1)
    assert made.end() < 15
    assert made.error is None


def test_outputs_for_a_topic_that_nobody_has_made_stop_the_worker(settings):
    """A dead letter or an answer that cannot be written would otherwise be lost or block for ever in silence."""
    topics.create(settings)
    from confluent_kafka.admin import AdminClient

    from streams.kafka import client_config

    admin = AdminClient(client_config(settings))
    admin.delete_topics([settings.topic(DECISIONS)])[settings.topic(DECISIONS)].result()
    send(settings, DRIFT, event("a"))
    with loop(settings, Scripted()) as made:
        eventually(lambda: isinstance(made.error, Stop), seconds=120, what=lambda: made.error)
    assert after(settings) < 0


def test_after_an_aborted_first_switch_the_current_model_is_known_to_be_none(ready):
    """The only trace of it in `current-model` is a marker; whoever waits for a record there waits for ever."""
    from confluent_kafka import Producer

    from streams.kafka import producer_config

    producer = Producer(producer_config(ready, **{"transactional.id": ready.topic(CURRENT_MODEL)}))
    producer.init_transactions(10)
    for _ in range(3):
        producer.begin_transaction()
        producer.produce(ready.topic(CURRENT_MODEL), key=b"activity", value=b"{}")
        producer.flush(10)
        producer.abort_transaction(10)
    current = CurrentModel(ready).start()
    try:
        assert current.caught_up.wait(10)
        assert current.latest is None
    finally:
        current.stop()


@pytest.fixture
def kafka_pid(servers, kafka_bootstrap) -> int:
    """The broker's process; only where the session has started it."""
    port = int(kafka_bootstrap.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN" and connection.pid:
            return connection.pid
    pytest.skip("the broker is somebody else's")


def test_a_job_between_events_that_only_waits_gives_way_to_an_event(ready):
    """A training that waits ten minutes for readings must not keep a person's `hold` waiting as well."""

    class Waiting:
        def poll(self) -> None:
            return None

        def cancel(self) -> None:
            ended.append(True)

        def gives_way(self) -> bool:
            return True

    ended: list[bool] = []
    handler = Scripted()
    handler.between = lambda: None if ended else Waiting()
    with loop(ready, handler) as made:
        eventually(lambda: made.loop.job)
        send(ready, DRIFT, event("a"))
        eventually(lambda: answered(ready) == ["a"])
    assert ended == [True]
