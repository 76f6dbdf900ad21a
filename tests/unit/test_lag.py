"""The verdicts and figures of lag, on Burrow's own examples and on what users of other tools have complained about."""

import pytest

from streams.lag import Commit, GroupSeen, LagTracker, Look, verdict_of, worst

GROUP, TOPIC = "g", "t"


def commits(offsets, lags, times):
    return [Commit(offset, lag, ts) for offset, lag, ts in zip(offsets, lags, times, strict=True)]


STEADY = range(1000, 5001, 1000)
TIMES = range(100, 501, 100)
IDLE = commits(range(792748079, 792748094), [0] * 15, range(1512224618, 1512224633))


@pytest.mark.parametrize(
    ("window", "ends", "lag", "now", "verdict"),
    [
        (commits(STEADY, (0, 50, 100, 150, 200), TIMES), [5200], 200, 600, "ok"),
        (commits(STEADY, (50, 100, 150, 200, 250), TIMES), [5250], 250, 600, "warn"),
        (commits(STEADY, (0, 50, 100, 150, 200), TIMES), [5200], 200, 1000, "stop"),
        (commits(STEADY, (50, 100, 150, 200, 250), TIMES), [5250], 250, 1000, "stop"),
        (commits([1000] * 5, (0, 50, 100, 150, 200), TIMES), [1200], 200, 600, "ok"),
        (commits([1000] * 5, (100, 150, 200, 250, 300), TIMES), [1300], 300, 600, "stall"),
        (commits([1000] * 5, [100] * 5, TIMES), [1100], 100, 600, "stall"),
        (commits((1000, 2000, 3000, 2000, 4000), (100, 150, 200, 1250, 300), TIMES), [4300], 300, 600, "rewind"),
        (commits(STEADY, (50, 100, 150, 200, 250), TIMES), [5250], 0, 1000, "ok"),
        (IDLE, [792749024, 792749000, 792748800, 792748600, 792748500], 931, 1512224650, "stop"),
        (IDLE, [792748094, 792748093, 792748093, 792748093], 1, 1512224650, "ok"),
    ],
)
def test_burrows_examples_get_burrows_verdicts(window, ends, lag, now, verdict):
    """People know these rules from the tool that made them; a port that judges otherwise would mislead them."""
    assert verdict_of(window, ends, lag, now) == verdict


def look(ts, committed, end, *, start=0, members=1, owned=True):
    owners = {(TOPIC, 0): "client@host"} if owned and members else {}
    return Look(
        ts=ts,
        groups={GROUP: GroupSeen("stable" if members else "empty", members, owners)},
        committed={(GROUP, TOPIC, 0): committed},
        starts={(TOPIC, 0): start},
        ends={} if end is None else {(TOPIC, 0): end},
    )


def last(looks, times=None, busy=None):
    tracker = LagTracker()
    found = None
    for each in looks:
        (found,) = tracker.take(each, times or {}, busy)
    return found


def test_a_group_that_has_not_committed_has_no_lag_but_a_backlog():
    """Neither 0 (all is well) nor -1 nor the whole offset is true (kafka_exporter #28, kafka-ui #675)."""
    found = last([look(0, None, 500, start=200)])
    assert (found.committed, found.lag, found.backlog, found.seconds) == (None, None, 300, None)
    assert "no commit yet" in found.why


def test_an_end_that_is_not_known_is_not_a_lag_of_zero():
    """While a partition has no leader, nobody knows."""
    found = last([look(0, 100, None)])
    assert (found.lag, found.verdict) == (None, "unknown")


def test_a_commit_beyond_the_end_is_never_a_negative_lag():
    """A topic that was made anew under the same name."""
    found = last([look(0, 100, 40)])
    assert (found.lag, found.verdict) == (None, "unknown")
    assert "made anew" in found.why


def test_a_group_whose_members_are_gone_is_measured_and_has_stopped():
    """Exporters forget such a group (kafka-lag-exporter #36), when it is needed most."""
    found = last([look(ts, 100, 200 + ts, members=0) for ts in range(0, 10, 2)])
    assert (found.lag, found.members, found.verdict) == (108, 0, "stop")


def test_a_consumer_that_is_there_but_makes_no_headway_is_stalled():
    """It heartbeats, so no session times out, and nobody notices."""
    found = last([look(ts, 100, 200) for ts in range(0, 120, 2)])
    assert found.verdict == "stall"


def test_a_worker_at_its_job_is_not_stalled():
    """A training takes minutes; the event behind it waits meanwhile."""
    looks = [look(ts, 100, 200) for ts in range(0, 120, 2)]
    found = last(looks, busy={GROUP: "training"})
    assert found.verdict == "warn"
    assert "training" in found.why


def test_a_first_look_at_a_living_group_accuses_nobody():
    """One look cannot tell who is slow."""
    assert last([look(0, 100, 200), look(1, 100, 200)]).verdict == "ok"


def test_markers_of_transactions_are_no_backlog():
    """A topic written in transactions ends in a marker that no consumer ever reads: its lag of 1 is not trouble."""
    looks = [look(ts, 100, 101) for ts in range(0, 120, 2)]
    found = last(looks, times={(TOPIC, 0, 100): None})
    assert (found.lag, found.seconds, found.verdict) == (1, 0.0, "ok")


def test_seconds_are_the_age_of_the_next_record():
    """Three records may be three seconds or three days."""
    assert last([look(1000, 100, 200)], times={(TOPIC, 0, 100): 940.0}).seconds == 60


def test_seconds_are_interpolated_where_no_record_was_read():
    """With a thousand lagging partitions not every record is read in every round."""
    found = last([look(0, 0, 0), look(10, 0, 100), look(20, 50, 150)])
    assert found.seconds == 15


def test_rates_tell_when_the_backlog_will_be_gone():
    """A large lag that will be gone in a minute is nothing to get up for."""
    found = last([look(0, 0, 1000), look(10, 300, 1100)])
    assert (found.rate_in, found.rate_out, found.lag, found.catch_up_s, found.trend) == (10, 30, 800, 40, "falling")


def test_nothing_is_promised_where_the_lag_grows():
    """At these rates it will never catch up."""
    found = last([look(0, 0, 1000), look(10, 100, 2000)])
    assert (found.catch_up_s, found.trend) == (None, "growing")


def test_the_trend_is_of_the_time_behind_where_it_is_known():
    """A hundred records more may be a minute less."""
    times = {(TOPIC, 0, 0): 0.0, (TOPIC, 0, 100): 900.0}
    found = last([look(1000, 0, 1000), look(1010, 100, 2000)], times=times)
    assert (found.seconds, found.trend) == (110, "falling")


def test_records_that_expired_unread_are_told():
    """Retention has passed the group by: those readings are lost to it."""
    assert last([look(0, 100, 500, start=150)]).expired == 50


def test_a_group_is_as_bad_as_its_worst_partition():
    """One partition of a hundred that stands still is one device that nobody watches."""
    assert worst(["ok", "stall", "warn"]) == "stall"
    assert worst([]) == "unknown"
