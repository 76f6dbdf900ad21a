"""What the demo found, and how it is shown."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Report:
    """What the demo found. accuracy: share of windows whose activity the endpoint named right."""

    closed: bool = False
    drift: str = ""
    device: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    chain: dict[str, str] = field(default_factory=dict)
    verdict: dict[str, float | str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    home: str = ""
    page: str = ""
    failure: str | None = None


def show(report: Report, *, keep: bool, console: Console, waits: float = 0) -> None:
    """Tables for a person, and where to look next. keep: the stack stays up; waits: so many s, or until Enter."""
    console.print()
    if report.accuracy:
        table = Table("accuracy of the endpoint", "", "version", box=None, header_style="bold")
        for when, told in (
            ("before", "before the drift"),
            ("during", "during it"),
            ("after", "after the redeployment"),
        ):
            if when in report.accuracy:
                version = report.versions.get("after" if when == "after" else "before", "")
                table.add_row(told, f"[bold]{report.accuracy[when]:.1%}[/]", version)
        console.print(table)
        console.print(f"({report.windows} windows of {report.device} that were never sent to Kafka)\n")
    if report.chain:
        chain = Table("the chain", "id", box=None, header_style="bold")
        for name in ("drift", "run", "model-registered", "deployed"):
            if name in report.chain:
                chain.add_row(name, report.chain[name])
        console.print(chain, "")
    if report.verdict:
        console.print(f"verdict: [bold]{report.verdict['outcome']}[/], {report.verdict['detail']}\n")
    steps = Table("step", "seconds", box=None, header_style="bold")
    for name, seconds in report.seconds.items():
        steps.add_row(name, f"{seconds:.1f}")
    console.print(steps)
    console.print(f"peak memory of the stack: {report.peak_mib:,.0f} MiB\n")
    if report.closed:
        console.print("[bold green]The loop closed.[/] A drift was seen, a better model trained, and it is in service.")
    else:
        console.print(f"[bold red]The loop did not close:[/] {report.failure}")
    if waits:
        told = "what drifted, what was decided, which model serves now, and whether anything lags"
        console.print(f"\n[bold]See it at {report.page}[/]: {told}.")
        console.print(f"The stack stops when you press Enter, or in {waits / 60:.0f} minutes.")
    else:
        _say_where_to_look(report, keep, console)


def _say_where_to_look(report: Report, keep: bool, console: Console) -> None:
    if keep:
        console.print(f"\nThe stack is up. [bold]See it at {report.page}[/] or look around:")
        console.print(f"  export DRIFTLOOP_HOME={report.home}")
        if shutil.which("driftloop") is None:
            console.print(f"  export PATH={Path(sys.executable).parent}:$PATH")
        for command, meaning in (
            ("lag", "whether any consumer group is behind"),
            ("why latest", "what led to the model in service"),
            ("status", "its processes; the endpoint is at the router's address"),
            ("events", "everything that happened"),
            ("produce --simulate --drift rotate:90@300", "more readings, another drift"),
            ("down", "stop it"),
        ):
            console.print(f"  driftloop {command:<42} {meaning}")
    else:
        console.print(f"\nLogs are in {report.home}/logs. `driftloop demo --keep` leaves everything up,")
        console.print(f"with lag, drift, models and devices on a page: [bold]{report.page}[/]")
