"""What every measurement prints: a table for people, and with `--json FILE` the same as figures for programs."""

import argparse
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Measurement:
    """One program's outcome; figures: single numbers by name, rows: one dictionary each."""

    name: str
    settings: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser that knows `--json FILE`."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--json", type=Path, help="write settings, machine, figures and rows there")
    return made


def show(measured: Measurement, to: Path | None) -> None:
    """Print the measurement, and write it if asked."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    console = Console(highlight=False, width=160)
    console.print(f"[bold]{measured.name}[/] {measured.settings} on {machine}")
    if measured.rows:
        table = Table(*measured.rows[0], box=None, header_style="bold")
        for row in measured.rows:
            table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    for name, value in measured.figures.items():
        console.print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
    if to is not None:
        content = {
            "name": measured.name,
            "settings": measured.settings,
            "machine": machine,
            "figures": measured.figures,
            "rows": measured.rows,
        }
        to.write_text(json.dumps(content, indent=1))
