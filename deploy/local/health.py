"""The health watch: supervisord sees a process that ends, this sees one that hangs. An event listener of supervisord.

Every five seconds each running process is asked whether it is alive; one that has been, and then says no several times
in a row, is restarted.
"""

from __future__ import annotations

import http.client
import os
import sys
import time
import xmlrpc.client
from pathlib import Path
from typing import Final

import structlog

from deploy.local import probes, programs
from deploy.local.programs import MARK
from deploy.local.supervisor import Supervisor

log = structlog.get_logger()
# Half a minute of silence: a busy machine is slow, and a restart of Kafka costs everybody ten seconds.
LIMIT: Final = 6


class Watch:
    """Counts each process's failures in a row."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._pids: dict[str, int] = {}
        self._failures: dict[str, int] = {}

    def hangs(self, name: str, pid: int, *, alive: bool) -> bool:
        """Whether the process was alive once and has now failed `limit` times in a row."""
        if self._pids.get(name) != pid:
            self._pids[name] = pid
            self._failures.pop(name, None)
        if alive:
            self._failures[name] = 0
        elif name in self._failures:
            self._failures[name] += 1
        return self._failures.get(name, 0) >= self._limit

    def has_been_alive(self, name: str) -> bool:
        """Whether this process has answered yet; before, it is only starting."""
        return name in self._failures

    def forget(self, name: str) -> None:
        """Begin anew with a process that is being restarted."""
        self._pids.pop(name, None)
        self._failures.pop(name, None)


def look(home: Path, supervisor: Supervisor, watch: Watch) -> None:
    """Ask every running process once; restart those that hang."""
    known = programs.read(home)
    for name, info in supervisor.info().items():
        program = known.get(name)
        if program is None or program.live is None or info["statename"] != "RUNNING":
            continue
        trouble = probes.trouble(program.live)
        hangs = watch.hangs(name, info["pid"], alive=trouble is None)
        if trouble is not None and watch.has_been_alive(name):
            log.warning("health.failed", process=name, pid=info["pid"], probe=program.live, trouble=trouble)
        if hangs:
            log.error("health.restart", process=name, pid=info["pid"], probe=program.live, trouble=trouble)
            watch.forget(name)
            supervisor.restart(name)


def main() -> None:
    """Answer supervisord's ticks until it is gone; standard output belongs to its protocol."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    home = Path(os.environ[MARK])
    path = Path(os.environ["SUPERVISOR_SERVER_URL"].removeprefix("unix://"))
    watch = Watch()
    log.info("health.watching", home=str(home))
    while True:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        heading = sys.stdin.readline()
        if not heading:
            return
        headers = dict(part.split(":", 1) for part in heading.split())
        payload = sys.stdin.read(int(headers["len"]))
        if _is_fresh(payload):
            try:
                look(home, Supervisor(path), watch)
            except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
                log.warning("health.supervisor", error=str(error))
        sys.stdout.write("RESULT 2\nOK")
        sys.stdout.flush()


def _is_fresh(payload: str) -> bool:
    """Whether a tick is recent: those that queued up while a restart took its time are dropped."""
    when = payload.removeprefix("when:")
    return not when.strip().isdigit() or time.time() - int(when) < 5


if __name__ == "__main__":
    main()
