"""The watchdog: ends an agent that stands still while there is more to read, and no other."""

from __future__ import annotations

import pytest

from schemas.errors import Stop
from streams.watchdog import Place, Watchdog


class Looks:
    """A watchdog of 60 s, looked with every 10 s at places that the test names."""

    def __init__(self, owned=(0, 1)):
        self.now, self.places, self.owned, self.stalls = 0.0, {}, list(owned), []
        self.watchdog = Watchdog(self, lambda: self.owned, 60, self.stalls.append, lambda: self.now)

    def ask(self):
        return self.places

    def at(self, *places):
        """One look, 10 s later, at partitions with these (committed, end)."""
        self.now += 10
        self.places = {number: Place(*place) for number, place in enumerate(places)}
        self.watchdog.look()


def test_a_partition_that_stands_still_with_more_to_read_is_a_stall():
    """Faust's oldest complaint: the worker beats its heart, holds its partitions, and reads nothing."""
    looks = Looks()
    for _ in range(6):
        looks.at((5, 5), (7, 9))
    assert looks.stalls == []
    looks.at((5, 5), (7, 12))
    (stall,) = looks.stalls
    assert isinstance(stall, Stop)
    assert "partition 1 stands at 7 of 12 for 60 s" in str(stall)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([((5, 5),)] * 30, id="nothing to read"),
        pytest.param([((at, 90),) for at in range(30)], id="slow but moving"),
        pytest.param([((at // 6, 90),) for at in range(30)], id="moving once in a minute"),
    ],
)
def test_an_agent_that_moves_or_has_nothing_to_do_is_left_alone(places):
    """Restarting what works costs everyone a rebalance."""
    looks = Looks(owned=[0])
    for place in places:
        looks.at(*place)
    assert looks.stalls == []


def test_another_agents_stall_is_not_this_ones():
    """Each watches its own partitions; one that has none watches all, for it may be the one that should have some."""
    looks = Looks(owned=[0])
    for _ in range(30):
        looks.at((5, 5), (7, 9))
    assert looks.stalls == []
    looks.owned = []
    for _ in range(7):
        looks.at((5, 5), (7, 9))
    assert looks.stalls


def test_while_the_broker_does_not_answer_nothing_counts_as_a_stall():
    """A broker's outage is not mended by restarting the agent; the time begins anew when it is back."""
    looks = Looks()
    for _ in range(6):
        looks.at((7, 9))
    looks.places = None
    looks.now += 600
    looks.watchdog.look()
    for _ in range(6):
        looks.at((7, 9))
    assert looks.stalls == []
