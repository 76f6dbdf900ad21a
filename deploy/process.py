"""The target `process`: a version runs as a process of this machine that outlives the worker which started it.

Three traces lead back to such a process: what it carries in its environment, its state file, and its answer to
/version. The environment is complete from the first moment on, so a worker that dies in between leaves no orphan.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import psutil
import structlog

from deploy import modelfiles
from deploy.local import home as homes
from deploy.local import orphans, ports
from deploy.local.programs import MARK, NAME_MARK, SERVING_MARK
from deploy.rollout import is_itself, is_sound
from deploy.target import LOG_LINES, LOOPBACK, PORT_ATTEMPTS, Deployment, DeploymentSpec, label
from schemas.errors import Reject, Retry

log = structlog.get_logger()

PORT_MARK: Final = "DRIFTLOOP_SERVING_PORT"
DIGEST_MARK: Final = "DRIFTLOOP_SERVING_DIGEST"


class State(msgspec.Struct, frozen=True):
    """A started process, as kept beside its folder. create_time: seconds since the epoch, psutil's."""

    model: str
    version: str
    digest: str
    port: int
    endpoint: str
    pid: int
    create_time: float


def free_port() -> int:
    """A port that nobody listens on now, below those that are handed to outgoing connections."""
    return next(port for port in random.sample(range(20_000, 32_000), 1000) if ports.is_free(port))


class ProcessTarget:
    """Scoring servers on 127.0.0.1, their files in `<home>/serving`, their output in `<home>/logs`.

    command: the program that serves the model in `spec.folder` on a port; `deploy` does not know it.
    starting_seconds: a process that does not answer after so long is stuck. stop_seconds: from SIGTERM to SIGKILL.
    """

    name: Final = "process"

    def __init__(
        self,
        home: Path,
        command: Callable[[DeploymentSpec, int], list[str]],
        *,
        starting_seconds: float = 60.0,
        stop_seconds: float = 35.0,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        self.home = home.expanduser().resolve()
        self._command = command
        self._starting_seconds = starting_seconds
        self._stop_seconds = stop_seconds
        self._choose_port = choose_port
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def create(self, spec: DeploymentSpec) -> Deployment:
        """See `Target.create`. Returns once the process listens, or has not done so in starting_seconds."""
        modelfiles.verify(spec.folder, spec.digest)
        try:
            with self._alone(spec.label):
                running = self._running(spec.label)
                if running and running.digest == spec.digest and self._is_sound(running):
                    self._keep(running)
                    log.info("process.adopted", deployment=spec.label, pid=running.pid)
                    return self._deployment(running)
                self._stop(spec.label)
                return self._start(self._installed(spec))
        except OSError as error:
            raise Retry(f"{spec.label} cannot be started in {self.home}: {error}") from error

    def find(self, model: str, version: str) -> Deployment | None:
        """See `Target.find`."""
        running = self._running(label(model, version))
        return self._deployment(running) if running else None

    def list(self, model: str) -> tuple[Deployment, ...]:
        """See `Target.list`."""
        labels = {path.stem for path in self._serving.glob("*.json")}
        labels |= {each.serving for each in orphans.marked(self.home) if each.serving}
        running = map(self._running, labels)
        return tuple(self._deployment(state) for state in running if state and state.model == model)

    def delete(self, deployment: Deployment) -> None:
        """See `Target.delete`. The log stays."""
        try:
            with self._alone(deployment.label):
                self._stop(deployment.label)
                shutil.rmtree(self._folder(deployment.label), ignore_errors=True)
        except OSError as error:
            raise Retry(f"{deployment.label} cannot be removed from {self.home}: {error}") from error

    def ended(self, deployment: Deployment) -> Retry | Reject | None:
        """See `Target.ended`. Reject if it ended by itself with an error; Retry if it was stopped or nobody knows."""
        pid, _, create_time = deployment.handle.partition("@")
        if self._process(deployment.label, int(pid), float(create_time)):
            return None
        child = self._children.get(int(pid))
        code = child.poll() if child else None
        tail = self._last_lines(deployment.label)
        if code is not None and code > 0:
            return Reject("crashed", f"{deployment.label} ended with exit code {code}; its last lines:\n{tail}")
        how = f"was ended by signal {-code}" if code else "is no longer there"
        return Retry(f"{deployment.label} {how}; its last lines:\n{tail}")

    def forget(self, images: Sequence[str]) -> None:
        """See `Target.forget`. A process has no image."""

    # -- one version's files --------------------------------------------------------------------------------------

    @property
    def _serving(self) -> Path:
        return self.home / "serving"

    def _folder(self, label: str) -> Path:
        return self._serving / label

    def _state_file(self, label: str) -> Path:
        return self._serving / f"{label}.json"

    def _log_file(self, label: str) -> Path:
        return homes.log_of(self.home, f"serving-{label}")

    @contextmanager
    def _alone(self, label: str) -> Iterator[None]:
        """A worker that was declared dead may still be at work; it must be through before the next one begins."""
        self._serving.mkdir(parents=True, exist_ok=True)
        with (self._serving / f".{label}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _installed(self, spec: DeploymentSpec) -> DeploymentSpec:
        """The spec with its own copy of the files, verified after copying."""
        folder = self._folder(spec.label)
        if spec.folder.resolve() != folder:
            part = self._serving / f".{spec.label}.part"
            shutil.rmtree(part, ignore_errors=True)
            for name in modelfiles.manifest(spec.folder):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(spec.folder / name, part / name)
            modelfiles.verify(part, spec.digest)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        return DeploymentSpec(spec.model, spec.version, spec.digest, folder)

    def _keep(self, state: State) -> None:
        homes.write(self._state_file(label(state.model, state.version)), msgspec.json.encode(state))

    def _kept(self, label: str) -> State | None:
        try:
            return msgspec.json.decode(self._state_file(label).read_bytes(), type=State)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _last_lines(self, label: str) -> str:
        try:
            with self._log_file(label).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-LOG_LINES:])[-800:]

    # -- one version's process ------------------------------------------------------------------------------------

    def _start(self, spec: DeploymentSpec) -> Deployment:
        """A new process that listens. Another program may take its port first; then it gets another one."""
        for _ in range(PORT_ATTEMPTS):
            state = self._spawn(spec, self._choose_port())
            deployment = self._deployment(state)
            self._keep(state)
            log.info("process.started", deployment=spec.label, pid=state.pid, port=state.port)
            deadline = time.monotonic() + self._starting_seconds
            while (ended := self.ended(deployment)) is None:
                if is_itself(deployment) or time.monotonic() > deadline:
                    return deployment
                time.sleep(0.1)
            if ports.is_free(state.port) and "address already in use" not in self._last_lines(spec.label):
                raise ended
            log.warning("process.port-taken", deployment=spec.label, port=state.port)
        raise Retry(f"{spec.label}: {PORT_ATTEMPTS} ports in a row were taken by other programs")

    def _spawn(self, spec: DeploymentSpec, port: int) -> State:
        environment = os.environ | {
            MARK: str(self.home),
            NAME_MARK: f"serving-{spec.label}",
            SERVING_MARK: spec.label,
            PORT_MARK: str(port),
            DIGEST_MARK: spec.digest,
        }
        self._log_file(spec.label).parent.mkdir(parents=True, exist_ok=True)
        with self._log_file(spec.label).open("ab") as output:
            child = subprocess.Popen(
                self._command(spec, port),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return self._state(spec.model, spec.version, spec.digest, port, psutil.Process(child.pid))

    @staticmethod
    def _state(model: str, version: str, digest: str, port: int, process: psutil.Process) -> State:
        endpoint = f"http://{LOOPBACK}:{port}"
        return State(model, version, digest, port, endpoint, process.pid, process.create_time())

    def _deployment(self, state: State) -> Deployment:
        handle = f"{state.pid}@{state.create_time}"
        return Deployment(self.name, state.model, state.version, state.digest, state.endpoint, handle)

    def _running(self, label: str) -> State | None:
        """The version's process by its state file, else by its marks."""
        state = self._kept(label)
        if state and self._process(label, state.pid, state.create_time):
            return state
        return next(self._by_marks(label), None)

    def _by_marks(self, label: str) -> Iterator[State]:
        model, _, version = label.rpartition("-v")
        for process in self._marked(label):
            with suppress(psutil.Error, OSError, KeyError, ValueError):
                environment = process.environ()
                port, digest = int(environment[PORT_MARK]), environment[DIGEST_MARK]
                yield self._state(model, version, digest, port, process)

    def _marked(self, label: str) -> Iterator[psutil.Process]:
        self._reap()
        for each in orphans.serving(orphans.marked(self.home)):
            if each.serving == label:
                yield each.process

    def _process(self, label: str, pid: int, create_time: float) -> psutil.Process | None:
        """The live process with this pid if it is the one that began then and carries this version's mark."""
        self._reap()
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - create_time) >= 1 or process.status() == psutil.STATUS_ZOMBIE:
                return None
            # An unreaped child cannot be anybody else. Its mark cannot be read at first: Popen returns as soon as the
            # kernel has begun to exec, which is before it has put the environment in its place.
            child = self._children.get(pid)
            ours = child is not None and child.returncode is None
            return process if ours or process.environ().get(SERVING_MARK) == label else None
        except (psutil.Error, OSError):
            return None

    def _is_sound(self, state: State) -> bool:
        return is_sound(self._deployment(state), state.create_time, self._starting_seconds)

    def _stop(self, label: str) -> None:
        """Ends every process of this version, and what they started, and forgets them."""
        processes = {process.pid: process for process in self._marked(label)}
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in processes:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, sign)
            _, alive = psutil.wait_procs(processes.values(), self._stop_seconds)
            for pid in processes:
                self._children.pop(pid, None)  # psutil has taken its exit code
            processes = {process.pid: process for process in alive}
        self._state_file(label).unlink(missing_ok=True)

    def _reap(self) -> None:
        """Forgets nothing, but lets ended children go, which would look alive otherwise."""
        for child in self._children.values():
            child.poll()
