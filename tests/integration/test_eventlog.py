"""Events and the pointer to the model that serves, read as anyone may read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer

from schemas.envelope import Envelope, encode
from schemas.errors import Retry
from schemas.events import DecisionMade, ModelDeployed, Smoke
from schemas.topology import CURRENT_MODEL, DECISIONS, DRIFT
from streams import topics
from streams.current_model import CurrentModel
from streams.eventlog import read_events
from streams.kafka import producer_config


def decision(number):
    event = DecisionMade(
        model="activity", about="retrain", outcome="deferred", reason="cooldown", detail="", concerns=[], ts=1.7e9
    )
    return encode(
        Envelope(f"id-{number}", event, "driftloop/test", "", datetime.fromtimestamp(1.7e9, UTC), f"id-{number}")
    )


def deployed(version):
    event = ModelDeployed(
        model="activity",
        version=version,
        previous=None,
        target="process",
        endpoint="http://127.0.0.1:1",
        image=None,
        smoke=Smoke(requests=1, p50_ms=1.0, p99_ms=1.0),
        reason="first",
        caused_by="x",
        digest="sha256:0",
    )
    return encode(Envelope(f"d-{version}", event, "driftloop/test", "", datetime.fromtimestamp(1.7e9, UTC), "x"))


@pytest.fixture
def send(settings):
    """Send a record to a topic, by itself or in a transaction that is committed or aborted."""
    topics.create(settings)

    def send(topic, key, value, headers, transaction=None):
        more = {} if transaction is None else {"transactional.id": f"{settings.namespace}test"}
        producer = Producer(producer_config(settings, **more))
        if transaction is not None:
            producer.init_transactions(20)
            producer.begin_transaction()
        producer.produce(settings.topic(topic), key=key, value=value, headers=headers)
        assert producer.flush(10) == 0
        if transaction is not None:
            producer.commit_transaction(20) if transaction == "commit" else producer.abort_transaction(20)

    return send


def ids(settings, *which, **how):
    return [logged.envelope.id for logged in read_events(settings, which, **how) if logged is not None]


def test_events_up_to_the_end_are_those_that_were_committed(settings, send):
    """An aborted transaction's event has not happened; a stranger's record is no event."""
    assert ids(settings, DECISIONS, DRIFT) == []
    send(DECISIONS, *decision(1), transaction="commit")
    send(DECISIONS, b"x", b"not an event", [])
    send(DECISIONS, b"activity", None, [])
    send(DECISIONS, *decision(2), transaction="abort")
    assert ids(settings, DECISIONS, DRIFT) == ["id-1"]
    send(DECISIONS, *decision(3))
    assert ids(settings, DECISIONS) == ["id-1", "id-3"]


def test_since_leaves_out_what_was_written_before(settings, send):
    """`events --since 10m`."""
    send(DECISIONS, *decision(1))
    time.sleep(0.05)
    moment = time.time()
    send(DECISIONS, *decision(2))
    assert ids(settings, DECISIONS, since=moment) == ["id-2"]
    assert ids(settings, DECISIONS, since=time.time() + 60) == []


def test_following_goes_on_at_the_end(settings, send):
    """A person watches as events come, and a None now and then lets the caller look elsewhere."""
    send(DECISIONS, *decision(1))
    following = read_events(settings, [DECISIONS], follow=True)
    assert next(following).envelope.id == "id-1"
    assert next(following) is None
    send(DECISIONS, *decision(2))
    assert next(logged for logged in following if logged is not None).envelope.id == "id-2"


def test_missing_topics_are_named_with_what_to_do(settings):
    """A first start in the wrong order is no mystery."""
    with pytest.raises(Retry, match=f"{settings.topic(DRIFT)}: run `driftloop topics create`"):
        list(read_events(settings, [DRIFT]))


def followed(settings, seconds=20):
    told = []
    current = CurrentModel(settings, told.append).start()
    try:
        assert current.caught_up.wait(seconds)
        assert told in ([], [current.latest]), "what served before is nobody's business any more"
        return current.version
    finally:
        current.stop()


@pytest.mark.parametrize(
    ("steps", "version"),
    [
        ([], None),
        ([("7", None)], "7"),
        ([("7", "commit"), ("8", "commit")], "8"),
        ([("8", "abort")], None),
        ([("7", None), ("8", "abort")], "7"),
        ([("7", None), (None, None)], None),
        ([("7", None), ("another model", None), ("nonsense", None)], "7"),
    ],
)
def test_the_pointer_is_known_once_it_has_caught_up(settings, send, steps, version):
    """Workers wait for it before they begin: never for ever, and never for a version that was not committed."""
    for step, transaction in steps:
        key, value, headers = deployed(step or "7")
        if step is None:
            value = None
        elif step == "another model":
            key = b"another"
        elif step == "nonsense":
            value = b"{}"
        send(CURRENT_MODEL, key, value, headers, transaction)
    assert followed(settings) == version
