"""Becomes one program of the stack: `python -P -m deploy.local.launch NAME`.

The supervisor's configuration file has rules of its own for quotes, commas, `%`, ` #` and ` ;`; this program reads
command, environment and folder from JSON instead, so that no path or value of a user can be misread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deploy.local.programs import MARK, NAME_MARK, read


def main() -> None:
    """Replace this process by the named program."""
    home = Path(os.environ[MARK])
    program = read(home)[sys.argv[1]]
    if program.directory is not None:
        os.chdir(program.directory)
    os.execvpe(program.command[0], program.command, os.environ | program.environment | {NAME_MARK: program.name})  # noqa: S606  # the very purpose


if __name__ == "__main__":
    main()
