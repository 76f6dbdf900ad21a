"""What the supervisor runs: one `Program` each, written down in the home for the launcher and the health watch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from deploy.local import home as homes

# Every process of a stack carries its home in the environment: that is how one is found whose supervisor is gone.
MARK: Final = "DRIFTLOOP_STACK"
NAME_MARK: Final = "DRIFTLOOP_PROCESS"
# A detached model server additionally carries <model>-v<version>; it outlives the worker that started it.
SERVING_MARK: Final = "DRIFTLOOP_SERVING"


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """One program of the stack. live, ready: addresses that `probes.trouble` understands."""

    name: str
    command: list[str]
    environment: dict[str, str]
    directory: str | None = None
    live: str | None = None
    ready: str | None = None
    address: str | None = None


def read(home: Path) -> dict[str, Program]:
    """The programs of the last `up`, in the order they start; none where there was none."""
    try:
        content = _file(home).read_bytes()
        return {program.name: program for program in msgspec.json.decode(content, type=list[Program])}
    except (OSError, msgspec.MsgspecError):
        return {}


def write(home: Path, programs: list[Program]) -> None:
    """Keep them for the launcher, the health watch and `status`."""
    homes.write(_file(home), msgspec.json.format(msgspec.json.encode(programs), indent=1))


def _file(home: Path) -> Path:
    return homes.run(home) / "programs.json"
