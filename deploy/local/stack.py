"""The one-machine stack as a whole: `up`, `down`, `status`.

What runs is decided here and written down in the home; supervisord runs it, the health watch restarts what hangs.
"""

from __future__ import annotations

import http.client
import time
import xmlrpc.client
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import psutil

from deploy.local import home as homes
from deploy.local import kafka, mlflow_server, orphans, ports, probes, programs, supervisor
from deploy.local.programs import Program
from schemas.errors import UserError
from schemas.settings import STACK_ENV, Settings

Say = Callable[[str], None]
State = Literal[
    "running", "starting", "backoff", "stopping", "stopped", "exited", "fatal", "orphan", "serving", "external"
]
SERVICES: Final = ("kafka", "mlflow")
_UP_SECONDS: Final = {"kafka": 90.0, "mlflow": 120.0}
_USERS_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A worker to run. With `health` it gets DRIFTLOOP_HEALTH_PORT and must answer /live and /ready there."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """One line of `status`. state: `orphan` has lost its supervisor, `serving` is a model's server that needs none,
    `external` is the user's own. uptime: seconds. healthy: None where nothing can be asked.
    """

    name: str
    state: State
    pid: int | None = None
    uptime: float | None = None
    healthy: bool | None = None
    address: str | None = None
    detail: str = ""


class Stack:
    """Kafka, MLflow and the workers of one home. An address that the user has set is used instead of our own server."""

    def __init__(self, home: Path, settings: Settings) -> None:
        self.home = home.expanduser().resolve()
        chosen = ports.kept(self.home)
        # What `stack.env` put into the settings is our own, however stale; anything else a person has set.
        kafka_of_ours, mlflow_of_ours = f"127.0.0.1:{chosen.get('kafka')}", f"http://127.0.0.1:{chosen.get('mlflow')}"
        self._users_kafka = None if settings.kafka_bootstrap == kafka_of_ours else settings.kafka_bootstrap
        self._users_mlflow = None if settings.mlflow_tracking_uri == mlflow_of_ours else settings.mlflow_tracking_uri
        self._users_router = 0 if settings.router_port == chosen.get("router") else settings.router_port
        self._users_monitor = 0 if settings.monitor_port == chosen.get("monitor") else settings.monitor_port
        self._settings = settings

    def up(
        self, workers: Sequence[Process], say: Say = lambda _: None, *, services: Collection[str] = SERVICES
    ) -> dict[str, str]:
        """Start what is not running, change what is not as asked, and return once Kafka and MLflow are healthy.

        Returns the environment with the stack's addresses, as every child gets it. A healthy stack is left alone; what
        an earlier one left behind is stopped first. Raises UserError in one line: which process, which log, its words.
        """
        homes.prepare(self.home)
        with homes.lock(self.home, say):
            found = supervisor.connect(self.home)
            self._stop_left_over(found, say)
            if found is None:
                supervisor.forget(self.home)
            for name, url in self._users().items():
                if name in services and url is not None:
                    self._await_users(name, url)
            wanted, addresses = self._plan(workers, services, found, say)
            try:
                running = self._apply(wanted, addresses, found, say)
                self._await(wanted, running, say)
            except BaseException:
                if found is None:  # what this call began, it ends; a stack that was there before stays
                    self._stop(say=lambda _: None, servers=False)
                raise
        return addresses

    def down(self, say: Say = lambda _: None) -> None:
        """Stop every process of the stack, model servers included, and take back its addresses. Data and ports stay."""
        if not homes.run(self.home).is_dir():
            say("nothing is running")
            return
        with homes.lock(self.home, say):
            self._stop(say, servers=True)

    def status(self) -> list[ProcessStatus]:
        """Every process: ours, those that lost their supervisor, model servers, and the user's own servers."""
        known = programs.read(self.home)
        marked = orphans.marked(self.home)
        running = supervisor.connect(self.home)
        info: dict[str, dict[str, Any]] = {}
        with suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):  # it may be ending
            info = {} if running is None else running.info()
        lost = orphans.left_over(marked, {*_pids(info), *([running.pid] if running else [])})
        lost_names = {each.name for each in lost}
        with ThreadPoolExecutor(8) as pool:
            futures = [
                *(pool.submit(self._external, name, url) for name, url in self._users().items()),
                *(
                    pool.submit(self._of_program, program, info.get(name))
                    for name, program in known.items()
                    if name in info or name not in lost_names
                ),
                *(pool.submit(self._of_orphan, each, known.get(each.name)) for each in lost),
                *(pool.submit(_of_server, each) for each in orphans.serving(marked)),
            ]
            return [future.result() for future in futures]

    # up, step by step

    def _stop_left_over(self, found: supervisor.Supervisor | None, say: Say) -> None:
        marked = orphans.marked(self.home)
        lost = orphans.left_over(marked, {found.pid, *_pids(found.info())} if found else ())
        if lost:
            say(f"stopping {len(lost)} left over: {', '.join(sorted({each.name for each in lost}))}")
            orphans.stop(lost)

    def _plan(
        self, workers: Sequence[Process], services: Collection[str], found: supervisor.Supervisor | None, say: Say
    ) -> tuple[list[Program], dict[str, str]]:
        """What shall run, in the order of starting, and the environment that holds the stack's addresses."""
        old = {} if found is None else programs.read(self.home)
        with_kafka = "kafka" in services and self._users_kafka is None
        with_mlflow = "mlflow" in services and self._users_mlflow is None
        names = ["router"] * (not self._users_router) + ["monitor"] * (not self._users_monitor)
        names += ["kafka", "kafka-controller"] * with_kafka + ["mlflow"] * with_mlflow
        names += [_health_port(worker.name) for worker in workers if worker.health]
        ours = {
            *old,
            *map(_health_port, old),
            *(["kafka-controller"] if "kafka" in old else []),
            *(["router", "monitor"] if found else []),
        }
        if self._users_router and not found and not ports.is_free(self._users_router, self._settings.router_host):
            raise UserError(
                f"DRIFTLOOP_ROUTER_PORT={self._users_router}: another program listens there; "
                "stop it, set another port, or leave it out to have a free one chosen"
            )
        port = ports.choose(self.home, names, running=ours)

        addresses = {
            "DRIFTLOOP_ROUTER_PORT": str(self._users_router or port["router"]),
            "DRIFTLOOP_MONITOR_PORT": str(self._users_monitor or port["monitor"]),
        }
        if with_kafka or self._users_kafka is not None:
            addresses["DRIFTLOOP_KAFKA_BOOTSTRAP"] = self._users_kafka or f"127.0.0.1:{port['kafka']}"
        if with_mlflow or self._users_mlflow is not None:
            addresses["MLFLOW_TRACKING_URI"] = self._users_mlflow or f"http://127.0.0.1:{port['mlflow']}"
        environment = {"DRIFTLOOP_HOME": str(self.home), programs.MARK: str(self.home), **addresses}

        wanted: list[Program] = []
        if with_kafka:
            wanted.append(
                old.get("kafka")
                or kafka.program(self.home, port=port["kafka"], controller_port=port["kafka-controller"], say=say)
            )
        if with_mlflow:
            wanted.append(old.get("mlflow") or mlflow_server.program(self.home, port=port["mlflow"]))
        for worker in workers:  # they read the `.env` of the folder in which the stack was started
            directory = old[worker.name].directory if worker.name in old else None
            wanted.append(_program(worker, port.get(_health_port(worker.name)), directory or str(Path.cwd())))
        with_addresses = [
            each if each.name in SERVICES and each.name in old else _with(each, environment) for each in wanted
        ]
        return with_addresses, addresses

    def _apply(
        self, wanted: list[Program], addresses: dict[str, str], found: supervisor.Supervisor | None, say: Say
    ) -> supervisor.Supervisor:
        """Bring supervisord and the addresses' file to what is wanted."""
        old = programs.read(self.home)
        programs.write(self.home, wanted)
        supervisor.write_config(self.home, [program.name for program in wanted])
        ours = {
            name: value
            for name, value in addresses.items()
            if value not in (self._users_kafka, self._users_mlflow, str(self._users_router), str(self._users_monitor))
        }
        homes.write(self.home / STACK_ENV, "".join(f"{name}={value}\n" for name, value in ours.items()))
        if found is None:
            say(f"starting {', '.join(program.name for program in wanted) or 'nothing'}")
            return supervisor.begin(self.home, {"DRIFTLOOP_HOME": str(self.home)})
        info = found.info()
        gone = [name for name in info if name != supervisor.HEALTH and name not in {each.name for each in wanted}]
        fresh = [each.name for each in wanted if each.name not in info or old.get(each.name) != each]
        if gone or fresh:
            say(f"changing {', '.join([*gone, *fresh])}")
            found.change(gone=gone, fresh=fresh)
        for name, each in found.info().items():
            if each["statename"] in ("STOPPED", "EXITED", "FATAL"):
                found.start(name)
        return found

    def _await(self, wanted: list[Program], running: supervisor.Supervisor, say: Say) -> None:
        """Return once Kafka and MLflow answer; raise UserError when one gives up or takes too long."""
        waiting = {program.name: program for program in wanted if program.name in SERVICES}
        begun = time.monotonic()
        failed_starts: dict[str, set[int]] = {name: set() for name in waiting}
        while waiting:
            info = running.info()
            for name, program in list(waiting.items()):
                state = info[name]["statename"]
                trouble = probes.trouble(program.ready or "") if state in ("STARTING", "RUNNING") else state
                if trouble is None:
                    say(f"{name} is ready at {program.address} ({time.monotonic() - begun:.1f} s)")
                    del waiting[name]
                    continue
                if state in ("BACKOFF", "FATAL"):
                    failed_starts[name].add(info[name]["stop"])
                late = time.monotonic() - begun > _UP_SECONDS[name]
                if late or len(failed_starts[name]) > 1 or state == "FATAL":  # a second try may well work, a third not
                    why = f"was not ready in {_UP_SECONDS[name]:.0f} s ({trouble})" if late else "does not start"
                    log = homes.log_of(self.home, name)
                    raise UserError(f"{name} {why}; {log}: {homes.last_trouble(log)}")
            time.sleep(0.1)

    def _await_users(self, name: str, url: str) -> None:
        deadline = time.monotonic() + _USERS_SECONDS
        while (trouble := probes.trouble(url)) is not None:
            if time.monotonic() > deadline:
                setting, address = {
                    "kafka": ("DRIFTLOOP_KAFKA_BOOTSTRAP", self._users_kafka),
                    "mlflow": ("MLFLOW_TRACKING_URI", self._users_mlflow),
                }[name]
                raise UserError(f"{setting}={address} does not answer ({trouble}); start it, or unset the variable")
            time.sleep(0.5)

    # down

    def _stop(self, say: Say, *, servers: bool) -> None:
        """Stop everything; detached model servers only if `servers`."""
        (self.home / STACK_ENV).unlink(missing_ok=True)  # first of all: nobody shall start to use it now
        found = supervisor.connect(self.home)
        if found is not None:
            # The watch first, lest it restart something; the workers together, while Kafka is there to be left.
            with suppress(OSError, psutil.Error, http.client.HTTPException, xmlrpc.client.Error):  # it may be ending
                own = psutil.Process(found.pid)
                found.stop([supervisor.HEALTH])
                say("stopping the workers")
                found.stop(name for name in found.info() if name not in SERVICES)
                say("stopping MLflow and Kafka")
                found.shutdown()
                psutil.wait_procs([own], timeout=3 * supervisor.STOP_SECONDS)
        orphans.stop([each for each in orphans.marked(self.home) if servers or each.serving is None])
        supervisor.forget(self.home)
        say("stopped")

    # status

    def _users(self) -> dict[str, str | None]:
        """The user's own servers, each with what to probe; None where MLflow is no server at all."""
        users: dict[str, str | None] = {}
        if self._users_kafka is not None:
            # With TLS or a password only the port is asked here; `driftloop doctor` asks the rest.
            scheme = "kafka" if self._settings.kafka_security_protocol == "PLAINTEXT" else "tcp"
            users["kafka"] = f"{scheme}://{self._users_kafka}"
        if self._users_mlflow is not None:
            is_page = self._users_mlflow.startswith(("http://", "https://"))
            users["mlflow"] = f"{self._users_mlflow.rstrip('/')}/health" if is_page else None
        return users

    def _external(self, name: str, url: str | None) -> ProcessStatus:
        trouble = None if url is None else probes.trouble(url)
        address = self._users_kafka if name == "kafka" else self._users_mlflow
        return ProcessStatus(
            name=name,
            state="external",
            healthy=None if url is None else trouble is None,
            address=address,
            detail=trouble or "",
        )

    def _of_program(self, program: Program, info: dict[str, Any] | None) -> ProcessStatus:
        state: State = "stopped" if info is None else info["statename"].lower()
        alive = info is not None and state in ("running", "starting")
        trouble = probes.trouble(program.ready) if alive and program.ready else None
        healthy = None if not (alive and program.ready) else trouble is None
        if state == "starting" and healthy:
            state = "running"
        detail = trouble or ""
        if state in ("backoff", "fatal", "exited"):
            detail = homes.last_trouble(homes.log_of(self.home, program.name))
        return ProcessStatus(
            name=program.name,
            state=state,
            pid=info["pid"] if alive and info else None,
            uptime=max(0.0, time.time() - info["start"]) if alive and info else None,
            healthy=healthy,
            address=program.address,
            detail=detail,
        )

    def _of_orphan(self, each: orphans.Marked, program: Program | None) -> ProcessStatus:
        trouble = probes.trouble(program.ready) if program and program.ready else None
        return ProcessStatus(
            name=each.name,
            state="orphan",
            pid=each.process.pid,
            uptime=_age(each.process),
            healthy=trouble is None if program and program.ready else None,
            address=program.address if program else None,
            detail="its supervisor is gone; `driftloop up` replaces it, `driftloop down` stops it",
        )


def _pids(info: dict[str, dict[str, Any]]) -> set[int]:
    return {each["pid"] for each in info.values() if each["pid"]}


def _of_server(each: orphans.Marked) -> ProcessStatus:
    address = None
    with suppress(psutil.Error):
        listening = [c.laddr for c in each.process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        address = f"http://{listening[0].ip}:{listening[0].port}" if listening else None
    return ProcessStatus(
        name=each.serving or each.name,
        state="serving",
        pid=each.process.pid,
        uptime=_age(each.process),
        healthy=probes.trouble(f"{address}/ping") is None if address else None,
        address=address,
    )


def _age(process: psutil.Process) -> float | None:
    with suppress(psutil.Error):
        return max(0.0, time.time() - process.create_time())
    return None


def _health_port(worker: str) -> str:
    """What the port of a worker's /live and /ready is kept under."""
    return f"{worker}-health"


def _program(worker: Process, port: int | None, directory: str) -> Program:
    if worker.name in (*SERVICES, supervisor.HEALTH):
        raise ValueError(f"{worker.name!r} is the name of a part of the stack")
    address = None if port is None else f"http://127.0.0.1:{port}"
    return Program(
        name=worker.name,
        command=list(worker.command),
        directory=directory,
        environment={**worker.environment, **({} if port is None else {"DRIFTLOOP_HEALTH_PORT": str(port)})},
        live=None if address is None else f"{address}/live",
        ready=None if address is None else f"{address}/ready",
        address=address,
    )


def _with(program: Program, environment: Mapping[str, str]) -> Program:
    return msgspec.structs.replace(program, environment={**environment, **program.environment})
