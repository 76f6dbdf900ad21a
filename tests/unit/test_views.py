"""What the page says is going on: the last that is known, and nothing that is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.envelope import envelope
from schemas.events import Position, QualityDegraded
from schemas.settings import Settings
from schemas.topology import DECISIONS, DEPLOYED, DRIFT, MODEL_REGISTERED
from streams.eventlog import Logged
from streams.letters import Letter
from tests.unit.controlling import decision, deployed, drift, learned
from workers import views
from workers.processes import ProcessSeen
from workers.seen import Seen

NOW = 1.8e9


def test_the_link_to_mlflow_is_one_that_a_browser_can_follow():
    """Under compose our processes know MLflow by a name that means nothing outside."""
    inside = Settings(_env_file=None, mlflow_tracking_uri="http://mlflow:5000")
    assert views.topology(inside)["mlflow"] == "http://mlflow:5000"
    outside = inside.model_copy(update={"mlflow_public_url": "http://localhost:5000"})
    assert views.topology(outside)["mlflow"] == "http://localhost:5000"


@pytest.mark.parametrize(
    ("doing", "level"),
    [("training", "busy"), ("cooldown", "good"), ("cooldown, 2 drifts wait", "busy"), ("idle", "good")],
)
def test_a_worker_that_rests_is_no_work_going_on(doing, level):
    """What a person reads first must not send him looking for work that nobody does."""
    seen = Seen()
    seen.kafka.trouble = None
    seen.processes = [ProcessSeen(name="retrain", address="", live=True, ready=True, doing=doing)]
    assert views.in_words(seen, Settings(_env_file=None), NOW)[0]["level"] == level


def words(*told, letters=()):
    """What is said of these events, a second apart, the last a minute ago."""
    seen = Seen()
    seen.kafka.trouble = None
    seen.events_read = True
    for number, (id, topic, event) in enumerate(told):
        written = NOW - 60 - len(told) + number
        seen.chain.add(Logged(topic, 0, number, written, envelope(event, id=id, source="s", subject="", time=written)))
    for each in letters:
        seen.take_letter(each)
    return views.in_words(seen, Settings(_env_file=None), NOW), seen


PROMOTED = ("p", DECISIONS, decision("promote", "promoted", "better-on-recent", "d"))
DRIFTED, LEARNED = ("d", DRIFT, drift()), ("r", MODEL_REGISTERED, learned("8", 400, 700, caused_by=["d"]))
SERVED = ("s", DEPLOYED, deployed("8", "7"))
HELPED = ("v", DECISIONS, decision("verdict", "helped", "better-after", "s"))


@pytest.mark.parametrize(
    ("told", "level", "says"),
    [
        ([DRIFTED], "busy", "no decision yet"),
        ([DRIFTED, PROMOTED, LEARNED], "busy", "version 8 is being deployed"),
        (
            [DRIFTED, PROMOTED, LEARNED, ("x", DECISIONS, decision("deploy", "refused", "signature", "r"))],
            "bad",
            "version 8 was trained for it and is not deployed",
        ),
        ([DRIFTED, PROMOTED, LEARNED, SERVED], "note", "version 8 was trained for it and serves."),
        ([DRIFTED, PROMOTED, LEARNED, SERVED, HELPED], "note", "serves, and it does better than the one before"),
        (
            [
                DRIFTED, PROMOTED, LEARNED, SERVED,
                ("b", DEPLOYED, deployed("7", "8", "rollback", "r7")),
            ],
            "note",
            "version 8 was trained for it and sent back; 7 serves again",
        ),
    ],
)  # fmt: skip
def test_what_came_of_a_drift_is_the_last_that_is_known(told, level, says):
    """A version that was refused is not a story that ended well."""
    said, _ = words(*told)
    [line] = [each for each in said if "drifted" in each["text"]]
    assert says in line["text"]
    assert line["level"] == level
    assert (said[0]["level"] == "good") == (level == "note")


def fault(channel="gravity.x", *, ended=False, ts=1.0):
    at = Position("activity", 0, 1)
    return QualityDegraded(
        device="phone-07", model="activity", channel=channel, fault="stuck", ts=ts, position=at, ended=ended
    )


def test_a_fault_is_told_until_it_ends_drift_or_no_drift():
    """A sensor that has been broken since yesterday is still broken."""
    said, seen = words(("f", DRIFT, fault()), ("g", DRIFT, fault("*")), ("h", DRIFT, fault("*", ended=True)))
    assert "phone-07 has a fault: gravity.x (stuck)." in [each["text"] for each in said]
    assert said[0]["level"] != "good"
    assert views.devices(seen)[0]["faults"] == 1
    said, seen = words(("f", DRIFT, fault()), ("h", DRIFT, fault(ended=True)))
    assert said[0]["level"] == "good"
    assert views.devices(seen)[0]["faults"] == 0


def test_messages_that_are_refused_now_are_not_all_is_well():
    """Somebody's new app version sends nonsense: the page has to say so before they ask."""
    letter = Letter(
        topic="activity.dlq", partition=0, offset=1, written=NOW - 30, reject_class="schema", reason="", source=None,
        source_partition=None, source_offset=None, key=None, value=None, size=0, headers=(), replay_of=None,
    )  # fmt: skip
    said, _ = words(letters=[letter, letter])
    assert said[0]["text"] == "2 messages could not be used so far, the last 30 s ago (schema)."
    said, _ = words(letters=[replace(letter, written=NOW - 3600)])
    assert said[0]["level"] == "good"
