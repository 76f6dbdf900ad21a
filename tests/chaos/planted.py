"""`python -m tests.chaos.planted NAME`: the agent with a bug that the harness must find, or it finds nothing.

Each bug replaces one function. A name that is no longer there ends the process with its name.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np


def commit_before_work() -> None:
    """What is due is sent a second later, as by a thread that nobody waits for; the offset does not wait."""
    from streams.outbox import Outbox

    real = Outbox.send

    def later(self: Any, *record: Any) -> None:
        asyncio.get_running_loop().call_later(1.0, real, self, *record)

    Outbox.send = later  # type: ignore[method-assign, assignment]


def no_offset_guard() -> None:
    """State that is read back does not remember what it has seen, so that a repeated chunk counts twice."""
    from streams import state

    real = state.decode

    def forgetful(*arguments: Any) -> Any:
        buffered, detector = real(*arguments)
        nothing = np.empty(0, np.uint32)
        return replace(buffered, last_offset=-1, last_ts=float("-inf"), known=nothing), detector

    state.decode = forgetful


def acknowledge_on_error() -> None:
    """An exception while a chunk is processed is swallowed and the chunk counts as done, as in Faust itself (#527)."""
    from streams import processor

    real = processor.Processor.process
    chunks = 0

    def lenient(self: Any, chunk: Any) -> Any:
        nonlocal chunks
        chunks += 1
        return processor.Outcome() if chunks % 10 == 0 else real(self, chunk)

    processor.Processor.process = lenient  # type: ignore[method-assign]


def no_finite_check() -> None:
    """Every number passes the gate."""
    from streams import gate

    gate.usable  # noqa: B018 - must be there; `streams.intake` takes it when it is loaded, later than this
    gate.usable = lambda ts, *_: np.ones(len(ts), bool)


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
