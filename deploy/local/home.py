"""The folder of a one-machine stack: where things are, whether it can be used, and who is at work in it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from schemas.errors import UserError

# Kafka needs room for segments and indexes: an index that cannot grow on a full disk kills the JVM (SIGBUS).
NEEDED_BYTES: Final = 256 * 1024 * 1024
_TROUBLE = re.compile(r"\b(ERROR|FATAL|CRITICAL|error)\b|\w(Error|Exception)\b")


def logs(home: Path) -> Path:
    """Where every process's log is."""
    return home / "logs"


def log_of(home: Path, name: str) -> Path:
    """The log of one process."""
    return logs(home) / f"{name}.log"


def run(home: Path) -> Path:
    """Where the supervisor's own files are."""
    return home / "run"


def prepare(home: Path) -> None:
    """Make the folders. Raises UserError where the folder cannot be written or its disk is (nearly) full."""
    probe = run(home) / "probe"
    try:
        for folder in (home, logs(home), run(home)):
            folder.mkdir(parents=True, exist_ok=True)
        run(home).chmod(0o700)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{home}: the disk is full; free some space or set DRIFTLOOP_HOME to another disk"
            ) from None
        raise UserError(
            f"{home}: cannot be written ({error.strerror}); set DRIFTLOOP_HOME to a folder that can"
        ) from None
    free = shutil.disk_usage(home).free
    if free < NEEDED_BYTES:
        raise UserError(
            f"{home}: only {free // 2**20} MB are free on its disk, {NEEDED_BYTES // 2**20} MB are needed; "
            "free some space or set DRIFTLOOP_HOME to another disk"
        )


def write(path: Path, content: str | bytes) -> None:
    """Replace a file's content as one step, so that nobody ever reads half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content.encode() if isinstance(content, str) else content)
    fresh.replace(path)


@contextmanager
def lock(home: Path, say: Callable[[str], None], *, seconds: float = 300) -> Iterator[None]:
    """Hold the folder for `up` or `down`; a second one waits. Raises UserError when the first takes too long."""
    path = run(home) / "lock"
    with path.open("a") as file:
        deadline = time.monotonic() + seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"another `driftloop up` or `down` is at work in {home}; waiting for it")
                    told = True
                if time.monotonic() > deadline:
                    raise UserError(f"{home}: another `driftloop up` or `down` has held it for too long") from None
                time.sleep(0.2)
        yield


def last_trouble(path: Path) -> str:
    """The last line of a log that speaks of an error, else its last line; cut to 300 characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return "(no log yet)"
    spoken = [line for line in lines if line]
    troubled = [line for line in spoken if _TROUBLE.search(line) and not line.startswith("at ")]
    return (troubled or spoken or ["(an empty log)"])[-1][:300]
