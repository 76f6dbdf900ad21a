"""The agent as a process on a real Kafka: nothing lost, nothing twice, nothing that stops it for good."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas.failpoints import EXIT_CODE
from schemas.topology import ACTIVITY, DEAD_LETTER_BYTES, DRIFT
from streams import topics
from streams.inject import apply, parse_drift
from streams.kafka import producer_config
from streams.producer import messages, produce
from streams.simulator import simulate
from tests.integration.agent_process import (
    DEAD_LETTERS,
    Agent,
    behind,
    drift_ids,
    eventually,
    free_port,
    read,
    send,
    truth,
)
from workers.agent import STOPPED_EXIT_CODE

NOW = 1.7e9


@pytest.fixture
def agent(settings):
    """Start agents of this test's namespace; whatever is left of them is killed."""
    started = []

    def start(**more):
        with_settings = more.pop("settings", settings)
        started.append(Agent(with_settings, **more))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


@pytest.fixture
def raw(settings):
    """The same settings with the detector that alarms most: every lost or repeated reading shows in its ids."""
    topics.create(settings)
    return settings.model_copy(update={"detector": "raw"})


def person(seconds=20, device=1):
    return simulate(1, seconds, seed=2, start_ts=NOW, first=device)


def classes(settings):
    return [dict(message.headers())["dlq.class"].decode() for message in read(settings, DEAD_LETTERS)]


def test_malformed_messages_are_dead_lettered_as_they_came_and_the_reading_after_them_is_processed(settings, agent):
    """Purpose: one broken sensor costs one dead letter a message, and nobody else anything."""
    topics.create(settings)
    key, value = next(messages(person(device=2), 50))
    headers = [("trace", b"\x00\xff"), ("trace", b"again"), ("empty", None), ("none", b"")]
    bad = {
        "syntax": [(key, b"not json"), (key, b""), (key, None)],
        "encoding": [(key, b"\x1f\x8b\x08\x00gzip"), (key, value.decode().encode("utf-16"))],
        "schema": [(key, b"{}"), (key, value.replace(b'"ts"', b'"time"'))],
        "device-mismatch": [(b"phone-99", value), (None, value)],
        "oversize": [(key, b"x" * (256 * 1024 + 1))],
    }
    first = value.index(b'"attitude.roll":[') + len(b'"attitude.roll":[')
    rest = value[value.index(b",", first) :]
    bad["not-finite"] = [(key, value[:first] + b"NaN" + rest)]
    bad["out-of-range"] = [(key, value[:first] + b"1e300" + rest)]
    sent = [(reject_class, *record) for reject_class, records in bad.items() for record in records]
    producer = Producer(producer_config(settings))
    for _, bad_key, bad_value in sent:
        producer.produce(settings.topic(ACTIVITY), key=bad_key, value=bad_value, partition=3, headers=headers)
    assert producer.flush(10) == 0
    produce(settings, person(), batch=50)
    process = agent()
    eventually(lambda: len(read(settings, DEAD_LETTERS)) >= len(sent) and behind(settings) == 0, what="all of it")
    letters = read(settings, DEAD_LETTERS)
    assert [(dict(each.headers())["dlq.class"].decode(), each.key(), each.value()) for each in letters] == sent
    for offset, letter in enumerate(letters):
        assert letter.partition() == 3
        assert letter.headers()[:4] == headers
        told = dict(letter.headers()[4:])
        assert told["dlq.topic"].decode() == settings.topic(ACTIVITY)
        assert (told["dlq.partition"], told["dlq.offset"]) == (b"3", str(offset).encode())
        assert told["dlq.reason"]
    assert process.terminate() == 0


def test_a_message_of_20_mb_and_one_larger_than_any_topic_once_decompressed_are_dead_lettered(settings, agent):
    """One such message must neither stop the agent for good nor stay in its memory."""
    topics.create(settings)
    process = agent()
    produce(settings, person(), batch=50)
    process.says("agent.starting")
    eventually(lambda: behind(settings) == 0, what="the first readings")
    before = psutil.Process(process.process.pid).memory_info().rss
    whole, bomb = b"x" * 20_000_000, b"y" * 60_000_000
    send(settings, [(b"phone-01", whole)])
    send(settings, [(b"phone-01", bomb)], **{"compression.type": "gzip", "message.max.bytes": 70_000_000})
    later = [person(60)[0].between(30, 60)]
    produce(settings, later, batch=50)
    eventually(lambda: len(classes(settings)) == 2 and behind(settings) == 0, what="both dead letters")
    first, second = read(settings, DEAD_LETTERS)
    assert first.value() == whole
    assert second.value() == bomb[: len(second.value())]
    assert DEAD_LETTER_BYTES - 10_000 < len(second.value()) < DEAD_LETTER_BYTES
    assert b"cut: 6000" in dict(second.headers())["dlq.reason"]
    assert classes(settings) == ["oversize", "oversize"]
    grown = psutil.Process(process.process.pid).memory_info().rss - before
    assert grown < 150_000_000, f"{grown / 1e6:.0f} MB"
    assert process.process.poll() is None


@pytest.mark.parametrize("detector", ["raw"])
def test_compressed_messages_are_read(raw, agent, detector):
    """Sensors compress as their client likes."""
    parts = np.array_split(np.arange(12_000), 5)
    whole = person(240)[0]
    for codec, rows in zip(("gzip", "snappy", "lz4", "zstd", "none"), parts, strict=True):
        send(raw, messages([whole.chosen(rows)], 25), **{"compression.type": codec, "linger.ms": 50})
    agent(settings=raw)
    eventually(lambda: behind(raw) == 0, what="all read")
    assert classes(raw) == []
    expected = truth(raw)
    assert len(expected.drifts) > 5
    assert sorted(drift_ids(raw)) == sorted(drift.id for drift in expected.drifts)


def test_killed_in_the_middle_it_goes_on_as_if_it_had_not_been(raw, agent):
    """The promise everything else stands on: the same ids as without the kills, none missing, none new."""
    produce(raw, simulate(4, 150, seed=7, start_ts=NOW))
    small = {"DRIFTLOOP_CHECKPOINT_READINGS": "500"}
    for point in ("after-update:3", "after-drift-send:1", "after-state-write:1"):
        assert agent(settings=raw, DRIFTLOOP_FAILPOINT=point, **small).exit_code() == EXIT_CODE
        assert behind(raw) > 0
    process = agent(settings=raw, **small)
    eventually(lambda: behind(raw) == 0, what="the end")
    expected = truth(raw)
    found = drift_ids(raw)
    assert len(expected.drifts) > 50
    assert set(found) == {drift.id for drift in expected.drifts}
    assert process.terminate() == 0
    assert behind(raw) == 0


HANGS = """
import pathlib, sys, time
from streams.processor import Processor
whole = Processor.process
def process(self, chunk):
    if pathlib.Path("hang").exists():
        time.sleep(1000)
    return whole(self, chunk)
Processor.process = process
from workers.cli import main
sys.argv = ["driftloop", "run", "agent"]
main()
"""


def test_one_that_hangs_ends_itself_and_the_next_goes_on(raw, agent):
    """It holds its partitions and its place in the group for ever: a supervisor can only restart what exits."""
    people = simulate(4, 150, seed=7, start_ts=NOW)
    produce(raw, [each.between(0, 70) for each in people])
    hanging = agent(settings=raw, program=("-c", HANGS), DRIFTLOOP_STALL_SECONDS="4")
    hanging.says("agent.assigned")
    eventually(lambda: behind(raw) == 0, what="the first half")
    (raw.home / "hang").touch()
    produce(raw, [each.between(70, 150) for each in people])
    assert hanging.exit_code() == STOPPED_EXIT_CODE
    assert "ending, to be started anew" in hanging.log
    agent(settings=raw)
    eventually(lambda: behind(raw) == 0, what="the end")
    expected = truth(raw)
    assert len(expected.drifts) > 50
    assert set(drift_ids(raw)) == {drift.id for drift in expected.drifts}


def test_agents_that_come_and_go_lose_and_invent_nothing(raw, agent):
    """Scaling out, and a rolling restart, are rebalances in the middle of the stream."""
    recordings = [
        apply(recording, parse_drift("noise:0.3@60"), np.random.default_rng(1))
        for recording in simulate(8, 120, seed=8, start_ts=NOW)
    ]
    small = {"DRIFTLOOP_CHECKPOINT_READINGS": "300"}
    first = agent(settings=raw, **small)
    producing = threading.Thread(target=lambda: produce(raw, recordings, speed=6.0, batch=5))
    producing.start()
    eventually(lambda: drift_ids(raw), what="the first drift")
    second = agent(settings=raw, **small)
    eventually(lambda: "agent.assigned" in second.log, what="the second agent's partitions")
    threading.Event().wait(2)
    assert first.terminate() == 0
    producing.join()
    eventually(lambda: behind(raw) == 0, what="the end")
    assert second.terminate() == 0
    expected = {drift.id for drift in truth(raw).drifts}
    assert len(expected) > 50
    assert set(drift_ids(raw)) == expected


@contextmanager
def forwarding(port, address):
    """A port that leads to the address, as long as the block lasts."""
    host, _, there = address.partition(":")
    server = socket.create_server(("127.0.0.1", port))

    def pump(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def accept():
        while True:
            try:
                ours, _ = server.accept()
            except OSError:
                return
            theirs = socket.create_connection((host, int(there)))
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        server.close()


def test_it_waits_for_the_broker_and_then_for_its_topics_and_says_what_is_missing(settings, agent):
    """After a power cut everything starts in any order."""
    port = free_port()
    process = agent(settings=settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{port}"}))
    process.says("kafka.waiting")
    assert f"127.0.0.1:{port}" in process.log
    with forwarding(port, settings.kafka_bootstrap):
        process.says("topics.waiting")
        process.says(f"{settings.topic(ACTIVITY)}: missing; run `driftloop topics create`")
        assert "Traceback" not in process.log
        topics.create(settings)
        produce(settings, person(), batch=50)
        eventually(lambda: behind(settings) == 0, what="the readings")
        assert process.terminate() == 0


def test_sigterm_while_it_waits_for_a_broker_ends_it_with_0(settings, agent):
    """Stopping a stack whose broker never came is no failure."""
    process = agent(settings=settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{free_port()}"}))
    process.says("kafka.waiting")
    assert process.terminate() == 0
    assert "Traceback" not in process.log


def limit(settings, topic, size):
    """Set the largest message that the topic takes."""
    resource = ConfigResource(
        ResourceType.TOPIC,
        settings.topic(topic),
        incremental_configs=[ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)],
    )
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(10)


@pytest.mark.parametrize(("topic", "what"), [(DEAD_LETTERS, "dead letters"), (DRIFT, "drift events")])
def test_what_cannot_be_written_stops_it_without_a_commit_and_is_written_after_the_restart(raw, agent, topic, what):
    """An effect that is not on its topic has not happened, so the reading behind it may not count as done."""
    size = DEAD_LETTER_BYTES if topic is DEAD_LETTERS else 1_000_000
    process = agent(settings=raw)
    process.says("agent.assigned")
    limit(raw, topic, 100)
    bad = [(b"phone-01", b"not json")]
    send(raw, [*bad, *messages(person(60), 50)])
    total = behind(raw)
    assert process.exit_code() not in {0, None}
    assert behind(raw) == total > 0
    limit(raw, topic, size)
    agent(settings=raw)
    eventually(lambda: behind(raw) == 0, what="the end")
    assert set(classes(raw)) == {"syntax"}  # once or, as it was written before the stop, twice
    assert set(drift_ids(raw)) == {drift.id for drift in truth(raw).drifts} != set()
