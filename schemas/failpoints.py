"""Named points at which a test may end the process, as a crash would: DRIFTLOOP_FAILPOINT="name" or "name:nth".

Off, which is always but in a test, `reach` is an empty function: it is chosen once, when the module is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "DRIFTLOOP_FAILPOINT"
EXIT_CODE: Final = 137  # as a process ended by kill -9 is reported by a shell


def _off(name: str) -> None:
    """Nothing ends here."""


def armed(wanted: str, then: Callable[[], object]) -> Callable[[str], None]:
    """A `reach` that does something at the nth time that a point is reached; wanted: "name" or "name:nth"."""
    name, _, nth = wanted.partition(":")
    left = int(nth or 1)

    def reach(reached: str) -> None:
        nonlocal left
        if reached == name:
            left -= 1
            if left == 0:
                then()

    return reach


def _end() -> None:
    os._exit(EXIT_CODE)


reach: Final[Callable[[str], None]] = armed(os.environ[VARIABLE], _end) if os.environ.get(VARIABLE) else _off
