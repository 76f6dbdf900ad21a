"""What led to what: the links followed both ways."""

import msgspec
import pytest

from schemas.envelope import envelope
from schemas.errors import UserError
from schemas.events import DecisionMade, ModelDeployed, ModelRegistered, SwitchRequested, event_id
from schemas.examples import EVENTS
from schemas.topology import DECISIONS, DEPLOYED, DRIFT, MODEL_REGISTERED
from streams.eventlog import Logged
from tests.unit.controlling import decision, deployed, drift, learned
from workers.chain import Chain, facts, tree

TOPIC_OF = {
    "driftloop.drift.detected.v1": DRIFT,
    "driftloop.model.registered.v1": MODEL_REGISTERED,
    "driftloop.model.deployed.v1": DEPLOYED,
    "driftloop.decision.made.v1": DECISIONS,
}
LOGGED = [Logged(topic, 0, at, 100.0 + at, EVENTS[name]) for at, (name, topic) in enumerate(TOPIC_OF.items())]
DRIFTED, REGISTERED, SERVED, DECIDED = LOGGED


@pytest.fixture
def chain():
    chain = Chain()
    for logged in LOGGED:
        assert chain.add(logged)
    return chain


def ids(found):
    return [each.envelope.id for each in found]


def test_a_deployment_is_followed_back_to_the_drift(chain):
    """Why does this model serve? is the question that brings people here."""
    around = chain.around(SERVED)
    assert ids(around.before) == ids([DRIFTED, REGISTERED, DECIDED])
    assert around.after == []


def test_a_drift_is_followed_to_all_that_came_of_it(chain):
    """What was done about it? is the other one; a decision not to do something is an answer as well."""
    assert ids(chain.around(DRIFTED).after) == ids([REGISTERED, SERVED, DECIDED])


def test_an_event_that_comes_twice_is_one(chain):
    """Delivery is at least once; the chain must not show a training that never was."""
    assert not chain.add(REGISTERED)
    assert len(chain.effects_of(DRIFTED)) == 2


@pytest.mark.parametrize(
    ("wanted", "found"), [("latest", SERVED), ("8", SERVED), (REGISTERED.envelope.id[:9], REGISTERED)]
)
def test_an_event_is_found_by_what_people_know(chain, wanted, found):
    """An id's beginning from a log line, a version from MLflow, or just the last one."""
    assert chain.find(wanted) is found


@pytest.mark.parametrize("wanted", ["99", "zz", ""])
def test_what_is_not_there_is_one_line(chain, wanted):
    """A typo must not end in a traceback, nor an empty text in any event."""
    with pytest.raises(UserError):
        chain.find(wanted)


def test_a_circle_of_links_is_walked_once():
    """Somebody else's events may name each other; following them must end."""
    one = EVENTS["driftloop.model.registered.v1"]
    assert isinstance(one.event, ModelRegistered)
    other = EVENTS["driftloop.model.deployed.v1"].event
    assert isinstance(other, ModelDeployed)
    chain = Chain()
    first = envelope(
        ModelRegistered(**{**{f: getattr(one.event, f) for f in one.event.__struct_fields__}, "caused_by": ["b"]}),
        id="a",
        source="s",
        subject="",
        time=0,
    )
    second = envelope(
        ModelDeployed(**{**{f: getattr(other, f) for f in other.__struct_fields__}, "caused_by": "a"}),
        id="b",
        source="s",
        subject="",
        time=0,
    )
    for each in (first, second):
        chain.add(Logged(DEPLOYED, 0, 0, 1.0, each))
    assert ids(chain.around(chain.find("a")).before) == ["b"]
    assert tree(chain, chain.find("a")).children


def test_the_oldest_events_are_forgotten_first():
    """Memory is bounded however long the monitor runs."""
    chain = Chain(most=2)
    for logged in LOGGED[:3]:
        chain.add(logged)
    assert ids(chain.all()) == ids([REGISTERED, SERVED])
    assert chain.causes_of(REGISTERED) == []


def test_the_tree_says_where_the_readings_lie_what_was_tried_and_what_speaks_for_it():
    """Whoever asks why a model changed must be able to check each step by hand."""
    at = drift(offset=500, change=400)
    version = learned("2", 400, 700, caused_by=["d"])
    promoted = decision("promote", "promoted", "better-on-recent", "d", numbers={"gain.low": 0.2}, cause="carrying")
    assert facts(at) == ["readings activity/2 400 … 500, confirmed by statistic"]
    assert "learned from activity/2 400 … 700: 1 readings" in facts(version)
    assert facts(promoted) == ["cause: carrying; gain.low 0.2"]


def test_what_was_decided_on_the_way_to_a_version_is_told_with_it():
    """The numbers of the gate stand in a decision, not in the version; without them the tree says what, not why."""
    chain = Chain()
    at, version = drift(), learned("2", 400, 700, caused_by=["d"])
    decisions = [
        decision("retrain", "deferred", "cooldown", "d"),
        decision("promote", "promoted", "better-on-recent", "d"),
    ]
    for number, (id, event, topic) in enumerate(
        [
            ("d", at, DRIFT),
            ("c", decisions[0], DECISIONS),
            ("v", version, MODEL_REGISTERED),
            ("p", decisions[1], DECISIONS),
        ]
    ):
        told = envelope(event, id=id, source="s", subject="", time=0.0)
        chain.add(Logged(topic, 0, number, float(number), told))
    around = chain.around(chain.find("v"))
    assert [each.envelope.id for each in around.before] == ["d", "c", "p"]


def of(*told):
    """A chain of events in this order: id, topic, event, and the root where it is another's."""
    chain = Chain()
    for number, (id, topic, event, root) in enumerate(told):
        enveloped = envelope(event, id=id, source="s", subject="", time=0.0, root=root)
        chain.add(Logged(topic, 0, number, float(number), enveloped))
    return chain


def test_a_version_that_serves_again_is_followed_to_the_one_that_failed_and_what_was_found():
    """`why latest` after a night in which a version was sent back."""
    decided = decision("rollback", "rolled-back", "slow", "d8")
    chain = of(
        ("d7", DEPLOYED, deployed("7"), None),
        ("d8", DEPLOYED, deployed("8", "7"), None),
        ("back", DEPLOYED, deployed("7", "8", "rollback"), None),
        ("why", DECISIONS, decided, None),
    )
    assert ids(chain.around(chain.find("latest")).before) == ["d8", "why"]
    assert ids(chain.around(chain.find("d8")).after) == ["back", "why"]
    assert ids(chain.around(chain.find("d7")).after) == [], "what it led to before is not this"


def test_a_version_that_did_harm_is_followed_to_the_request_and_the_way_back():
    """The retrain worker asks, in the drift's own chain; the deploy worker answers."""
    undo = SwitchRequested(model="activity", action="rollback", by="retrain", version="8")
    request = event_id("harmed", "d8")
    decided = DecisionMade(
        model="activity",
        about="rollback",
        outcome="rolled-back",
        reason="manual",
        detail="",
        concerns=[request],
        ts=1.0,
    )
    chain = of(
        ("d7", DEPLOYED, deployed("7"), "r"),
        ("d8", DEPLOYED, deployed("8", "7"), "drift"),
        (request, MODEL_REGISTERED, undo, "drift"),
        ("back", DEPLOYED, deployed("7", "8", "rollback"), "drift"),
        ("why", DECISIONS, decided, "drift"),
    )
    assert ids(chain.around(chain.find("d8")).after) == [request, "back", "why"]
    assert ids(chain.around(chain.find("why")).before) == ["d8", request]


def test_of_several_loops_each_is_asked_for_its_own():
    """They may share a cluster's topics."""
    others = msgspec.structs.replace(deployed("7"), model="other")
    chain = of(("mine", DEPLOYED, deployed("7"), None), ("theirs", DEPLOYED, others, None))
    assert chain.find("latest", "activity").envelope.id == chain.find("7", "activity").envelope.id == "mine"
    assert chain.find("theirs", "activity").envelope.id == "theirs"


def test_a_switch_by_hand_is_followed_to_whoever_asked_for_it():
    """Nobody looks for a drift then."""
    asked = SwitchRequested(model="activity", action="promote", by="ann", version="5")
    chain = of(
        ("ask", MODEL_REGISTERED, asked, None),
        ("d5", DEPLOYED, deployed("5", "6", "manual"), "ask"),
        ("d6", DEPLOYED, deployed("6", "5"), "another"),
    )
    assert ids(chain.around(chain.find("d5")).before) == ["ask"]
    assert ids(chain.around(chain.find("ask")).after) == ["d5"]
