"""supervisord for one home: its configuration, starting it, talking to it over its unix socket."""

from __future__ import annotations

import hashlib
import http.client
import os
import site
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from deploy.local import home as homes
from deploy.local.programs import MARK, SERVING_MARK
from schemas.errors import UserError

HEALTH: Final = "health"
STOP_SECONDS: Final = 30
_PYTHON: Final = "DRIFTLOOP_PYTHON"
# Backs off one second longer after each failed start; so many tries that "given up" practically never happens.
_NEVER: Final = 1_000_000


def config(names: Iterable[str], *, socket_path: Path) -> str:
    """supervisord.conf for these programs.

    Paths are relative, as supervisord runs in the home: it reads `%`, ` #` and ` ;` in a path in ways of its own.
    """
    sections = [
        f"""\
[unix_http_server]
file={socket_path}
chmod=0700

[supervisord]
logfile=logs/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile=run/supervisord.pid
childlogdir=logs
nocleanup=true
minfds=512
minprocs=50

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[eventlistener:{HEALTH}]
command="%(ENV_{_PYTHON})s" -P -m deploy.local.health
events=TICK_5
buffer_size=100
autorestart=true
startretries={_NEVER}
stdout_logfile=NONE
stderr_logfile=logs/{HEALTH}.log
stderr_logfile_maxbytes=5MB
stderr_logfile_backups=1
stopwaitsecs=5
"""
    ]
    sections += [
        f"""\
[program:{name}]
command="%(ENV_{_PYTHON})s" -P -m deploy.local.launch {name}
priority={priority}
autorestart=true
startsecs=5
startretries={_NEVER}
stopasgroup=true
killasgroup=true
stopwaitsecs={STOP_SECONDS}
redirect_stderr=true
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
        for priority, name in enumerate(names, 1)  # stopped in the opposite order: Kafka last
    ]
    return "\n".join(sections)


def write_config(home: Path, names: Iterable[str]) -> Path:
    """The configuration's file in the home. The socket's path is kept there, whatever TMPDIR says next time."""
    path = home / "supervisord.conf"
    homes.write(path, config(names, socket_path=socket_of(home)))
    return path


def socket_of(home: Path) -> Path:
    """The unix socket: in the temporary folder, because a socket's path may have 108 characters only."""
    kept = homes.run(home) / "socket"
    try:
        return Path(kept.read_text())
    except OSError:
        name = hashlib.sha256(f"{os.getuid()}:{home}".encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"driftloop-{name}.sock"
        if homes.run(home).is_dir():
            homes.write(kept, str(path))
        return path


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Supervisor:
    """A running supervisord; `pid` is its own. Its errors are `xmlrpc.client.Fault`, a lost connection is `OSError`."""

    def __init__(self, path: Path) -> None:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{path}")
        transport._get_connection = lambda: _Connection(path)  # theirs waits for ever
        self._server = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        self.pid = int(self._rpc.getPID())

    @property
    def _rpc(self) -> Any:
        return self._server.supervisor

    def info(self) -> dict[str, dict[str, Any]]:
        """Each program's name, state (`statename`), pid, start and stop times, as supervisord tells them."""
        return {each["name"]: each for each in self._rpc.getAllProcessInfo()}

    def start(self, name: str) -> None:
        """Start without waiting; nothing happens where it runs already."""
        self._rpc.startProcess(name, False)

    def stop(self, names: Iterable[str]) -> None:
        """Stop all at once and return when they have: killed after STOP_SECONDS at the latest."""
        names = set(names) & self.info().keys()
        for name in names:
            try:
                self._rpc.stopProcess(name, False)
            except xmlrpc.client.Fault as fault:
                if "NOT_RUNNING" not in fault.faultString:
                    raise
        deadline = time.monotonic() + STOP_SECONDS + 10
        while time.monotonic() < deadline:
            if not any(self.info()[name]["pid"] for name in names):
                return
            time.sleep(0.1)

    def restart(self, name: str) -> None:
        """Stop, by force if need be, and start."""
        try:
            self.stop([name])
        finally:  # one that was stopped nobody else would start
            self.start(name)

    def change(self, *, gone: Iterable[str], fresh: Iterable[str]) -> None:
        """Take over a new configuration file: `gone` are stopped and forgotten, `fresh` are made anew and started."""
        gone, fresh = list(gone), list(fresh)
        self._rpc.reloadConfig()
        known = self.info().keys()
        leaving = [name for name in (*gone, *fresh) if name in known]
        self.stop(leaving)
        for name in leaving:
            self._rpc.removeProcessGroup(name)
        for name in fresh:
            self._rpc.addProcessGroup(name)

    def shutdown(self) -> None:
        """Stop everything, Kafka last, and end."""
        self._rpc.shutdown()


def connect(home: Path) -> Supervisor | None:
    """The home's supervisord; None where none answers (its socket file, if there is one, is stale)."""
    path = socket_of(home)
    try:
        if path.stat().st_uid != os.getuid():
            return None
        return Supervisor(path)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return None


def forget(home: Path) -> None:
    """Remove what a supervisord leaves behind that was killed."""
    (homes.run(home) / "supervisord.pid").unlink(missing_ok=True)
    path = socket_of(home)
    if path.is_socket() and path.stat().st_uid == os.getuid():
        path.unlink()


def begin(home: Path, environment: dict[str, str]) -> Supervisor:
    """Start supervisord, which starts all its programs. Raises UserError where it does not come up."""
    inherited = {name: value for name, value in os.environ.items() if name != SERVING_MARK}
    root = str(Path(__file__).parents[2])
    if root not in site.getsitepackages():  # a checkout: the children run what the caller runs
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", "supervisord.conf"]
    # Becomes a daemon by itself; what keeps it from starting stands on its standard error before that.
    done = subprocess.run(
        command,
        cwd=home,
        env=inherited | environment | {MARK: str(home), _PYTHON: sys.executable},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=30,
    )
    deadline = time.monotonic() + 10
    while done.returncode == 0 and time.monotonic() < deadline:
        if (found := connect(home)) is not None:
            return found
        time.sleep(0.05)
    log = homes.log_of(home, "supervisord")
    said = [line for line in done.stdout.splitlines() if line.startswith("Error")] or [homes.last_trouble(log)]
    raise UserError(f"the supervisor did not start; {log}: {said[0]}")
