"""Consumer lag as a person wants it told: how far behind, in records and seconds, and whether that is trouble.

Pure: what a look at the cluster has found goes in (`streams.lag_collector` looks), rates, times and verdicts come out.
The verdict follows the published rules of LinkedIn's Burrow, which need no thresholds: it is not how large a lag is
that matters but whether the consumer still makes headway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

from schemas.topology import ACTIVITY, AGENT_GROUP, DEPLOY_GROUP, DRIFT, MODEL_REGISTERED, RETRAIN_GROUP, Topic

Verdict = Literal["ok", "warn", "stall", "stop", "rewind", "unknown"]
Trend = Literal["growing", "steady", "falling"]

GROUPS: Final[dict[str, Topic]] = {AGENT_GROUP: ACTIVITY, RETRAIN_GROUP: DRIFT, DEPLOY_GROUP: MODEL_REGISTERED}
WORST_FIRST: Final[tuple[Verdict, ...]] = ("stop", "stall", "rewind", "warn", "unknown", "ok")
TROUBLE: Final = ("stop", "stall")
# Burrow keeps ten commits; they shall span minutes, however often we look.
COMMITS: Final = 10
MIN_DISTANCE_S: Final = 10.0
RATE_S: Final = 30.0
ENDS: Final = 120


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed offset, the lag then, and when: seconds."""

    offset: int
    lag: int
    ts: float


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """A consumer group. state, members: None where the broker did not tell. owners: (topic, partition) → client."""

    state: str | None = None
    members: int | None = None
    owners: Mapping[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartitionSeen:
    """A partition's replicas, by broker id."""

    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the cluster has found. Committed offsets were read before the ends, so none lies beyond.

    committed: (group, topic, partition) → offset; None: no commit yet. starts, ends: (topic, partition) → offset.
    """

    ts: float
    groups: Mapping[str, GroupSeen]
    committed: Mapping[tuple[str, str, int], int | None]
    starts: Mapping[tuple[str, int], int]
    ends: Mapping[tuple[str, int], int]
    partitions: Mapping[tuple[str, int], PartitionSeen] = field(default_factory=dict)
    brokers: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """One partition of one group. Where something is not known or not there it is None, never 0 and never -1.

    lag: end - committed, as Kafka's own tool counts it. waiting: the same, but 0 where only markers of transactions are
    left, which nobody ever reads. backlog: what a group without a commit has before it.
    seconds: age of the record at the committed offset. rate_in, rate_out: records a second. catch_up_s: at these rates;
    None if it is not catching up. trend: of the seconds, or of the records where times are not known. expired: records
    that were deleted before they were read.
    """

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int | None
    lag: int | None
    waiting: int | None
    backlog: int | None
    seconds: float | None
    rate_in: float | None
    rate_out: float | None
    catch_up_s: float | None
    trend: Trend | None
    members: int | None
    owner: str | None
    expired: int
    verdict: Verdict
    why: str


def verdict_of(commits: Sequence[Commit], ends: Sequence[int], lag: int, now: float) -> Verdict:
    """Burrow's verdict on one partition. commits: oldest first; ends: recent end offsets, newest first.

    Source: Burrow's wiki, "Consumer Lag Evaluation Rules", with its later corrections #290 and #303.
    """
    if lag <= 0 or not commits:
        return "ok"
    first, last = commits[0], commits[-1]
    if now - last.ts > last.ts - first.ts and not any(end <= last.offset for end in ends):
        return "stop"
    if any(commit.lag == 0 for commit in commits):
        return "ok"
    if any(later.offset < earlier.offset for earlier, later in pairwise(commits)):
        return "rewind"
    if all(commit.offset == first.offset for commit in commits):
        return "stall"
    growing = all(later.lag >= earlier.lag for earlier, later in pairwise(commits))
    return "warn" if growing else "ok"


def worst(verdicts: Collection[Verdict]) -> Verdict:
    """The verdict on a group: its worst partition's; unknown if it has none."""
    return next((each for each in WORST_FIRST if each in verdicts), "unknown")


WORDS: Final[dict[Verdict, str]] = {
    "ok": "keeps up",
    "warn": "reads, but falls behind",
    "stall": "is there, but makes no headway",
    "stop": "has stopped reading",
    "rewind": "went back to earlier records",
    "unknown": "cannot be told",
}


@dataclass(slots=True)
class _Partition:
    commits: deque[Commit] = field(default_factory=lambda: deque(maxlen=COMMITS))
    offsets: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=ENDS))
    lags: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=ENDS))
    seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=ENDS))


class LagTracker:
    """Remembers a few minutes of looks: what rates, trends and verdicts are made from."""

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, str, int], _Partition] = {}
        self._ends: dict[tuple[str, int], deque[tuple[float, int]]] = {}

    def take(
        self,
        look: Look,
        times: Mapping[tuple[str, int, int], float | None],
        busy: Mapping[str, str] | None = None,
    ) -> list[PartitionLag]:
        """Every partition of every group. times: (topic, partition, offset) → time of the record there; None: there is
        none, only markers of transactions. busy: group → what its one-job-at-a-time worker is doing.
        """
        for place, end in look.ends.items():
            self._ends.setdefault(place, deque(maxlen=ENDS)).append((look.ts, end))
        for gone in self._partitions.keys() - look.committed.keys():
            del self._partitions[gone]
        return [
            self._of(group, (topic, partition), look, times, (busy or {}).get(group))
            for group, topic, partition in sorted(look.committed)
        ]

    def rate_in(self, topic: str, partition: int) -> float | None:
        """Records a second that a partition grows by."""
        return _rate(self._ends.get((topic, partition), ()))

    def _of(
        self,
        group: str,
        place: tuple[str, int],
        look: Look,
        times: Mapping[tuple[str, int, int], float | None],
        busy: str | None,
    ) -> PartitionLag:
        seen, committed = look.groups.get(group, GroupSeen()), look.committed[(group, *place)]
        end, start = look.ends.get(place), look.starts.get(place, 0)
        kept = self._partitions.setdefault((group, *place), _Partition())
        owner = seen.owners.get(place)
        lag, waiting, backlog, seconds = None, None, None, None
        verdict: Verdict = "unknown"
        if end is None:
            why = "its end offset cannot be told now"
        elif committed is None and place[0].startswith(f"{group}-") and place[0].endswith("-changelog"):
            verdict, why = "ok", "the group's own state: read back at a start, never committed"
        elif committed is None:
            backlog = end - start
            why = f"no commit yet; {backlog} records are there" if backlog else "no commit yet, and nothing to read"
        elif committed > end:
            why = "its commit lies beyond the end: the topic was made anew or lost records"
        else:
            lag = end - committed
            waiting = 0 if lag and times.get((*place, committed), 0.0) is None else lag
            self._note(kept, committed, waiting, look.ts, alive=owner is not None)
            seconds = self._seconds(place, committed, waiting, look.ts, times)
            if seconds is not None:
                kept.seconds.append((look.ts, seconds))
            verdict, why = self._judge(kept, place, waiting, look.ts, alive=owner is not None)
            if lag and not waiting:
                why = "keeps up; only markers of transactions are left"
            if verdict == "stall" and busy:
                verdict, why = "warn", f"one job at a time: {busy}"
        rate_in, rate_out = self.rate_in(*place), _rate(kept.offsets)
        gain = None if rate_in is None or rate_out is None else rate_out - rate_in
        return PartitionLag(
            group=group,
            topic=place[0],
            partition=place[1],
            committed=committed,
            end=end,
            lag=lag,
            waiting=waiting,
            backlog=backlog,
            seconds=seconds,
            rate_in=rate_in,
            rate_out=rate_out,
            catch_up_s=0.0 if waiting == 0 else waiting / gain if waiting and gain is not None and gain > 0 else None,
            trend=_trend(kept.lags if seconds is None else kept.seconds) or _trend(kept.lags),
            members=seen.members,
            owner=owner,
            expired=max(0, start - committed) if committed is not None else 0,
            verdict=verdict,
            why=why,
        )

    def _note(self, kept: _Partition, committed: int, lag: int, ts: float, *, alive: bool) -> None:
        """A commit that moved counts; one that did not counts as one only where a member owns the partition."""
        kept.offsets.append((ts, committed))
        kept.lags.append((ts, lag))
        commits = kept.commits
        if commits and committed == commits[-1].offset and not alive:
            return
        if len(commits) > 1 and commits[-1].ts - commits[-2].ts < MIN_DISTANCE_S:
            commits.pop()  # the newest stands for those that came soon after one another
        commits.append(Commit(committed, lag, ts))

    def _judge(
        self, kept: _Partition, place: tuple[str, int], lag: int, ts: float, *, alive: bool
    ) -> tuple[Verdict, str]:
        ends = [end for _, end in reversed(self._ends.get(place, ()))]
        verdict = verdict_of(list(kept.commits), ends, lag, ts)
        young = kept.commits[-1].ts - kept.commits[0].ts < 2 * MIN_DISTANCE_S
        if alive and young and verdict in ("stall", "warn", "stop"):
            return "ok", "just begun to look; it has members"
        return verdict, WORDS[verdict]

    def _seconds(
        self,
        place: tuple[str, int],
        committed: int,
        lag: int,
        ts: float,
        times: Mapping[tuple[str, int, int], float | None],
    ) -> float | None:
        if lag == 0:
            return 0.0
        written = times.get((*place, committed))
        if written is None:
            written = _passed(self._ends.get(place, ()), committed)
        return None if written is None else max(0.0, ts - written)


def _passed(ends: Collection[tuple[float, int]], offset: int) -> float | None:
    """When the end passed an offset, interpolated between looks; None if that was before the first one."""
    for (earlier, low), (later, high) in pairwise(ends):
        if low <= offset < high:
            return earlier + (later - earlier) * (offset - low) / (high - low)
    return None


def _recent(points: Collection[tuple[float, float]]) -> list[tuple[float, float]]:
    points = list(points)
    return [each for each in points if points[-1][0] - each[0] <= RATE_S]


def _rate(points: Collection[tuple[float, int]]) -> float | None:
    """Increase a second over the last RATE_S; None with fewer than two looks. A step back counts as none."""
    recent = _recent(points)
    if len(recent) < 2:
        return None
    return max(0.0, (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]))


def _trend(lags: Collection[tuple[float, float]]) -> Trend | None:
    """Whether the lag has changed by more than a tenth over the last RATE_S."""
    recent = _recent(lags)
    if len(recent) < 2:
        return None
    change, size = recent[-1][1] - recent[0][1], max(recent[0][1], recent[-1][1])
    return "steady" if abs(change) <= 0.1 * size else "growing" if change > 0 else "falling"
