"""The next record of a partition, whatever Faust delivers around a rebalance."""

from __future__ import annotations

import asyncio

import pytest

from schemas.errors import Stop
from streams.position import PATIENCE_S, REWIND_S, Position

EVERY = range(10_000)


class FakeLog:
    """A partition that holds these offsets, and the group's committed one."""

    def __init__(self, committed, held=EVERY):
        self.at, self.held, self.asked = committed, held, 0

    def committed(self, partition):
        return self.at

    def first_from(self, partition, offset):
        self.asked += 1
        return next(held for held in self.held if held >= offset)


class Delivery:
    """A position that is asked about one delivered offset after the other, at a clock's time."""

    def __init__(self, log):
        self.now, self.rewound = 100.0, []
        self.position = Position(log, self._rewind, lambda: self.now)

    async def _rewind(self, partition, offset):
        self.rewound.append((partition, offset))

    def later(self, seconds):
        self.now += seconds
        asyncio.run(self.position.tend())

    def taken(self, *offsets, partition=0):
        async def ask():
            return [offset for offset in offsets if await self.position.expects(partition, offset)]

        return asyncio.run(ask())


def test_records_in_order_are_taken_from_the_committed_offset_on():
    """The usual case; the broker is not asked about any of them."""
    log = FakeLog(5)
    assert Delivery(log).taken(5, 6, 7) == [5, 6, 7]
    assert log.asked == 0


def test_a_record_delivered_again_is_not_taken_again():
    """Faust goes back to the committed offset after every rebalance."""
    assert Delivery(FakeLog(5)).taken(3, 4, 5, 6, 5, 6, 7) == [5, 6, 7]


def test_records_from_before_the_rebalance_are_left_out_until_those_before_them_have_come():
    """Taken, they would make all the readings before them look seen."""
    delivery = Delivery(FakeLog(5))
    assert delivery.taken(500, 501, 502, 5, 6) == [5, 6]
    delivery.later(REWIND_S)
    assert delivery.rewound == []


def test_a_hole_after_the_beginning_is_left_open_until_it_is_filled():
    """A delivery that is cut short leaves one in the middle."""
    delivery = Delivery(FakeLog(5))
    assert delivery.taken(5, 6, 9, 10, 7, 8, 9) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("committed", [None, 0, 20])
def test_holes_of_the_log_itself_are_stepped_over(committed):
    """Markers of transactions are never delivered, nor is what retention has deleted."""
    delivery = Delivery(FakeLog(committed, held=[23, 24, 30, 31]))
    assert delivery.taken(23, 24, 30, 31) == [23, 24, 30, 31]
    assert delivery.rewound == []


def test_each_partition_has_its_own_place():
    """They share nothing else either."""
    delivery = Delivery(FakeLog(5))
    assert delivery.taken(5, 6, partition=0) == [5, 6]
    assert delivery.taken(5, 6, partition=1) == [5, 6]


def test_what_does_not_come_is_asked_for_and_given_up_in_the_end():
    """Otherwise the agent would run and do nothing, with nobody told."""
    delivery = Delivery(FakeLog(5))
    delivery.taken(500, 501)
    delivery.later(0)
    assert delivery.rewound == []
    for times in (1, 2):
        delivery.later(REWIND_S)
        assert delivery.rewound == [(0, 5)] * times
    assert delivery.taken(5) == [5]
    delivery.later(PATIENCE_S + 1)
    delivery.taken(502)
    with pytest.raises(Stop, match=r"502 was delivered, 6 was not"):
        delivery.later(PATIENCE_S + 1)


def test_after_forgetting_the_group_s_offset_counts_again():
    """Another owner may have gone on in between."""
    log = FakeLog(5)
    delivery = Delivery(log)
    delivery.taken(5, 6)
    delivery.position.forget()
    log.at = 50
    assert delivery.taken(7, 50, 51) == [50, 51]


def test_what_was_asked_before_a_revocation_takes_nothing_after_it():
    """The answer may come when the partition already belongs to somebody else."""
    delivery = Delivery(log := FakeLog(5))

    def committed(partition):
        delivery.position.forget()
        return 5

    log.committed = committed
    assert delivery.taken(5) == []
