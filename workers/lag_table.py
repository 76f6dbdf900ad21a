"""`driftloop lag`: the lag of every partition of every group, once or over and over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from schemas.errors import Retry
from schemas.settings import Settings
from streams.lag import GROUPS, WORDS, LagTracker, PartitionLag, Verdict
from streams.lag_collector import Collector, RecordTimes
from workers.processes import ask, busy

# Without a second look there is no rate, and no telling who has stopped.
_BETWEEN_S = 1.0
_TRENDS: dict[str, str] = {"growing": " ↑", "falling": " ↓"}
_COLOURS: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "rewind": "yellow", "stall": "red", "stop": "red"}


def looks(
    settings: Settings, pattern: str | None, every: float = 2.0, *, watch: bool = False
) -> Iterator[list[PartitionLag] | Retry]:
    """Lags, again and again, our groups first; the first after two looks. If the broker does not answer: raises Retry;
    where it is watched and has answered once, yields it instead of lags that nobody knows.
    """
    ours = {f"{settings.namespace}{group}" for group in GROUPS}
    collector, tracker, times = Collector(settings, pattern), LagTracker(), RecordTimes(settings)
    try:
        first = collector.look()
        tracker.take(first, times.of(first))
        time.sleep(_BETWEEN_S)
        while True:
            try:
                look = collector.look()
                lags = tracker.take(look, times.of(look), busy(settings, ask(settings)))
            except Retry as away:
                if not watch:
                    raise
                yield away
            else:
                yield sorted(lags, key=lambda each: each.group not in ours)
            time.sleep(every)
    finally:
        times.close()


def table(lags: Sequence[PartitionLag]) -> Table:
    """A line for each partition."""
    shown = Table("group", "topic", "partition", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("committed", "end", "lag", "behind", "in/s", "out/s", "done in", "members"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verdict")
    for each in lags:
        if each.committed is None and each.verdict == "ok":
            continue  # a group's own state, which it never commits
        colour = _COLOURS.get(each.verdict, "dim")
        none_yet = each.committed is None and each.end is not None
        shown.add_row(
            escape(each.group),
            escape(each.topic),
            str(each.partition),
            "none yet" if none_yet else _number(each.committed),
            _number(each.end),
            _number(each.lag) if not none_yet else "" if each.backlog is None else f"({each.backlog:,} there)",
            "" if none_yet else _seconds(each.seconds) + _TRENDS.get(each.trend or "steady", ""),
            _rate(each.rate_in),
            _rate(each.rate_out),
            ""
            if each.lag == 0
            else _seconds(each.catch_up_s)
            if each.catch_up_s is not None
            else "not" * bool(each.waiting),
            _number(each.members),
            f"[{colour}]{each.verdict}[/]" + (f" [dim]{escape(each.why)}[/]" if each.why != WORDS["ok"] else ""),
        )
    return shown


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
