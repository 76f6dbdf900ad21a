"""The one-machine stack as the command line sees it: which processes belong to it, and how they are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from deploy.local.stack import Process, ProcessStatus, Stack
from schemas.settings import Settings, load_settings
from streams import topics

PROCESSES = ("agent", "retrain", "deploy", "router", "monitor")
_COLOURS = {"running": "green", "serving": "green", "external": "green", "starting": "yellow", "backoff": "red"}


def stack(settings: Settings) -> Stack:
    """The stack of the settings' home."""
    return Stack(settings.home, settings)


def start(settings: Settings, say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> Settings:
    """Kafka and MLflow up, topics made, our processes started; the settings with its addresses."""
    ours = [
        Process(
            name=name,
            command=[sys.executable, "-m", "workers.cli", "run", name],
            environment=dict(environment or {}),
        )
        for name in PROCESSES
    ]
    stack(settings).up(ours, say)
    found = load_settings(home=settings.home)
    for name in topics.create(found):
        say(f"created topic {name}")
    return found


def processes(settings: Settings) -> list[ProcessStatus]:
    """Every process of the stack; the router and the monitor with the addresses that they serve."""
    served = {
        **({"router": settings.router_url} if settings.router_port else {}),
        **({"monitor": settings.monitor_url} if settings.monitor_port else {}),
    }
    return [replace(each, address=served.get(each.name, each.address)) for each in stack(settings).status()]


def well(found: Sequence[ProcessStatus]) -> bool:
    """Whether every process runs and says so itself, where it can be asked."""
    return all(each.state in ("running", "serving", "external") and each.healthy is not False for each in found)


def table(found: Sequence[ProcessStatus]) -> Table:
    """One line a process."""
    shown = Table("process", "state", "healthy", "pid", "up", "address", "", box=None, header_style="bold")
    for each in found:
        colour = _COLOURS.get(each.state, "red")
        healthy = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[each.healthy]
        shown.add_row(
            each.name,
            f"[{colour}]{each.state}[/]",
            healthy,
            "" if each.pid is None else str(each.pid),
            "" if each.uptime is None else _duration(each.uptime),
            each.address or "",
            each.detail,
        )
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
