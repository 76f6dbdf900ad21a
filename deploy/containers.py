"""The target `docker`: a version runs as a container of an engine, published on this machine's loopback.

The container carries who it is in its labels, which it has from the first moment on, so that a worker that dies in
between leaves nothing that its successor cannot find. The engine restarts nothing: that is the deploy worker's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from deploy import modelfiles
from deploy.image.engine import engine_may_fail
from deploy.image.layer import DIGEST_LABEL, MODEL_LABEL, PORT, VERSION_LABEL, Builder
from deploy.image.registry import Registry
from deploy.process import free_port
from deploy.rollout import is_sound
from deploy.target import LOG_LINES, LOOPBACK, PORT_ATTEMPTS, Deployment, DeploymentSpec, label
from schemas.errors import Reject, Retry

log = structlog.get_logger()

SCOPE_LABEL: Final = "io.driftloop.stack"
IMAGE_LABEL: Final = "io.driftloop.image"
_PROCESSES: Final = 128


class DockerTarget:
    """Containers without privileges, with limits, on a read-only root.

    scope: whose containers these are; those of another scope on the same engine are never touched.
    registry: where the builder's images have to be pulled from if the engine lacks them.
    """

    name: Final = "docker"

    def __init__(
        self,
        engine: Any,
        builder: Builder,
        *,
        scope: str,
        registry: Registry | None = None,
        cpus: float = 1.0,
        memory_mb: int = 512,
        starting_seconds: float = 60.0,
        stop_seconds: int = 35,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        self._engine = engine
        self._builder = builder
        self._scope = scope
        self._registry = registry
        self._cpus = cpus
        self._memory_mb = memory_mb
        self._starting_seconds = starting_seconds
        self._stop_seconds = stop_seconds
        self._choose_port = choose_port

    def create(self, spec: DeploymentSpec) -> Deployment:
        """See `Target.create`."""
        modelfiles.verify(spec.folder, spec.digest)
        image = self._builder.build(spec)
        with engine_may_fail():
            running = self._container(spec.label)
            if running is not None:
                found = self._deployment(running)
                if running.status == "running" and found.digest == spec.digest and self._is_sound(running, found):
                    log.info("container.adopted", deployment=spec.label, id=running.short_id)
                    return found
                self._remove(running)
            self._pull(image)
            return self._start(spec, image)

    def find(self, model: str, version: str) -> Deployment | None:
        """See `Target.find`."""
        with engine_may_fail():
            container = self._container(label(model, version))
            if container is None or container.status != "running":
                return None
            return self._deployment(container)

    def list(self, model: str) -> tuple[Deployment, ...]:
        """See `Target.list`. Containers that have ended are among them: they too have to be taken away."""
        with engine_may_fail():
            wanted = [f"{SCOPE_LABEL}={self._scope}", f"{MODEL_LABEL}={model}"]
            found = self._engine.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)
            return tuple(map(self._deployment, found))

    def delete(self, deployment: Deployment) -> None:
        """See `Target.delete`."""
        with engine_may_fail():
            container = self._container(deployment.label)
            if container is not None:
                self._remove(container)

    def ended(self, deployment: Deployment) -> Retry | Reject | None:
        """See `Target.ended`. Reject if it ended by itself with an error or for want of memory."""
        import docker.errors

        with engine_may_fail():
            try:
                container = self._engine.containers.get(deployment.handle)
            except docker.errors.NotFound:
                return Retry(f"{deployment.label} is no longer there")
            state = container.attrs["State"]
            if state["Running"]:
                return None
            said = container.logs(tail=LOG_LINES).decode(errors="replace")[-800:]
            code = int(state["ExitCode"])
            if state["OOMKilled"]:
                return Reject(
                    "crashed", f"{deployment.label} needed more than {self._memory_mb} MB; its last lines:\n{said}"
                )
            if 0 < code < 128:
                return Reject("crashed", f"{deployment.label} ended with exit code {code}; its last lines:\n{said}")
            return Retry(f"{deployment.label} was ended (exit code {code}); its last lines:\n{said}")

    def forget(self, images: Sequence[str]) -> None:
        """See `Target.forget`."""
        for image in images:
            self._builder.forget(image)

    # -- one version's container ----------------------------------------------------------------------------------

    def _is_sound(self, container: Any, deployment: Deployment) -> bool:
        started = datetime.fromisoformat(container.attrs["State"]["StartedAt"][:19]).replace(tzinfo=UTC)
        return is_sound(deployment, started.timestamp(), self._starting_seconds)

    def _name(self, label: str) -> str:
        return f"driftloop-{hashlib.sha256(self._scope.encode()).hexdigest()[:8]}-{label}"

    def _container(self, label: str) -> Any | None:
        import docker.errors

        try:
            return self._engine.containers.get(self._name(label))
        except docker.errors.NotFound:
            return None

    def _deployment(self, container: Any) -> Deployment:
        labels = container.labels
        bound = container.attrs["HostConfig"]["PortBindings"][f"{PORT}/tcp"][0]
        return Deployment(
            self.name,
            labels[MODEL_LABEL],
            labels[VERSION_LABEL],
            labels[DIGEST_LABEL],
            f"http://{bound['HostIp']}:{bound['HostPort']}",
            container.id,
            labels[IMAGE_LABEL],
        )

    def _pull(self, image: str) -> None:
        import docker.errors

        try:
            self._engine.images.get(image)
        except docker.errors.NotFound:
            if self._registry is None:
                raise Retry(f"the engine has lost image {image}; it is built again") from None
            repository, _, digest = image.partition("@")
            try:
                self._engine.images.pull(repository, tag=digest, auth_config=self._registry.docker_login())
            except docker.errors.NotFound as error:
                raise Retry(f"the registry has lost image {image}") from error

    def _start(self, spec: DeploymentSpec, image: str) -> Deployment:
        """A new container. Another program may take its port first; then it gets another one."""
        import docker.errors

        for _ in range(PORT_ATTEMPTS):
            container = self._engine.containers.create(
                image,
                name=self._name(spec.label),
                labels={
                    SCOPE_LABEL: self._scope,
                    MODEL_LABEL: spec.model,
                    VERSION_LABEL: spec.version,
                    DIGEST_LABEL: spec.digest,
                    IMAGE_LABEL: image,
                    "io.driftloop.managed-by": "driftloop",
                },
                ports={f"{PORT}/tcp": (LOOPBACK, self._choose_port())},
                read_only=True,
                tmpfs={"/tmp": "size=64m,mode=1777,noexec,nosuid,nodev"},  # noqa: S108  inside the container
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit=f"{self._memory_mb}m",
                memswap_limit=f"{self._memory_mb}m",
                nano_cpus=round(self._cpus * 1e9),
                pids_limit=_PROCESSES,
                log_config={"type": "json-file", "config": {"max-size": "5m", "max-file": "2"}},
            )
            try:
                container.start()
            except docker.errors.APIError as error:
                container.remove(force=True)
                if "address already in use" not in str(error) and "port is already allocated" not in str(error):
                    raise
                log.warning("container.port-taken", deployment=spec.label)
                continue
            container.reload()
            log.info("container.started", deployment=spec.label, id=container.short_id, image=image)
            return self._deployment(container)
        raise Retry(f"{spec.label}: {PORT_ATTEMPTS} ports in a row were taken by other programs")

    def _remove(self, container: Any) -> None:
        import docker.errors

        try:
            container.stop(timeout=self._stop_seconds)
            container.remove(force=True)
        except docker.errors.NotFound:
            return
