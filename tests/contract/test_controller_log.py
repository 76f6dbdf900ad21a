"""What the controller has decided on given topics, for good: a release that decides otherwise must say so here."""

from pathlib import Path

import msgspec
import pytest

from schemas.events import EVENT_TYPES, type_of
from tests.unit.controlling import World, drift, fault, told
from workers.controller import Policy

GOLDEN = Path(__file__).parent / "golden" / "controller"


def storm():
    """A fleet drifts within a minute, twice; one of its sensors is broken."""
    world = World()
    fleet = [(float(n), told(drift(offset=1_000 + n, device=f"p{n % 5}"), f"a{n}", n)) for n in range(20)]
    again = [(400.0 + n, told(drift(offset=2_000_000 + n, device=f"p{n % 5}"), f"b{n}", 400 + n)) for n in range(10)]
    world.consume([*fleet, (300.0, told(fault("p3", 300.0), "f", 300)), *again], until=2000)
    return world


def nothing_helps():
    """Trainings bring nothing: the breaker opens, and lets one through later."""
    world = World(Policy(cooldown_s=60), ends=lambda train: "uncertain" if train.attempt else "rejected")
    world.consume([(200.0 * n, told(drift(offset=500 + n), f"d{n}", 200 * n)) for n in range(6)], until=30_000)
    return world


def lines_of(world):
    """The world's topics, a line for each event."""
    return [
        msgspec.json.encode(
            {"id": each.id, "at": each.time.timestamp(), "type": type_of(each.event), "data": each.event}
        )
        for each in world.log
    ]


@pytest.mark.parametrize("story", [storm, nothing_helps], ids=lambda story: story.__name__)
def test_the_same_topics_give_the_same_decisions_as_ever(story):
    """State is what the topics say, so a replay is an audit."""
    lines = lines_of(story())
    golden = (GOLDEN / f"{story.__name__}.jsonl").read_bytes().splitlines()
    assert lines == golden
    assert {msgspec.json.decode(line)["type"] for line in golden} <= set(EVENT_TYPES)


if __name__ == "__main__":  # a release that is meant to decide otherwise: python -m tests.contract.test_controller_log
    for each in (storm, nothing_helps):
        (GOLDEN / f"{each.__name__}.jsonl").write_bytes(b"\n".join(lines_of(each())) + b"\n")
