"""`python -m tests.chaos.planted NAME`: the agent with a bug that the harness must find, or it finds nothing.

Each bug replaces one function. A name that is no longer there ends the process with its name.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def commit_before_work() -> None:
    """What is due is written a second later, as by a thread that nobody waits for; the offset does not wait."""
    from streams import agent

    real = agent.Watcher._make_durable

    async def later(self: Any, *arguments: Any) -> None:
        async def write() -> None:
            await asyncio.sleep(1.0)
            await real(self, *arguments)

        running.append(asyncio.create_task(write()))

    running: list[asyncio.Task[None]] = []
    agent.Watcher._make_durable = later  # type: ignore[method-assign]


def no_offset_guard() -> None:
    """State that is read back does not remember what it has seen, so that a repeated run counts twice."""
    from streams import gate, state

    real = state.decode

    def forgetful(*arguments: Any) -> Any:
        found = real(*arguments)
        found.last_offset, found.last_ts, found.known = -1, float("-inf"), gate.nothing_known()
        return found

    state.decode = forgetful


def acknowledge_on_error() -> None:
    """An exception while a run is processed is swallowed and the run counts as done, as Faust itself does (#527)."""
    from streams import processor

    real = processor.Processor.process
    runs = 0

    def lenient(self: Any, records: Any) -> Any:
        nonlocal runs
        runs += 1
        return processor.Outcome() if runs % 10 == 0 else real(self, records)

    processor.Processor.process = lenient  # type: ignore[method-assign]


def no_finite_check() -> None:
    """Every number passes the gate."""
    from streams import gate

    def anything(ts: Any, *_: Any) -> Any:
        return np.ones(len(ts), bool)

    _known(gate, "_finite_and_in_range")
    gate._finite_and_in_range = anything


def _known(module: Any, name: str) -> None:
    getattr(module, name)


BUGS: dict[str, Callable[[], None]] = {
    "commit-before-work": commit_before_work,
    "no-offset-guard": no_offset_guard,
    "acknowledge-on-error": acknowledge_on_error,
    "no-finite-check": no_finite_check,
}


def main() -> None:
    BUGS[sys.argv[1]]()
    sys.argv[1:] = ["run", "agent"]
    from workers.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
