"""The builder that uses a Docker engine, and the runtime image, which needs one.

The engine's push never raises; what went wrong stands in its stream.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from deploy.image import layer as layers
from deploy.image.append import adopted
from deploy.image.registry import Registry
from deploy.target import DeploymentSpec
from schemas.errors import Retry, UserError, first_line
from schemas.failpoints import reach

log = structlog.get_logger()

RUNTIME_NAME: Final = "driftloop-runtime"
_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[1]
_PACKAGES: Final = ("schemas", "streams", "deploy", "workers")


def connect() -> Any:
    """A client of the engine that DOCKER_HOST names, else of this machine's. Raises Retry."""
    import docker

    with engine_may_fail():
        return docker.from_env(timeout=120)


@contextmanager
def engine_may_fail() -> Iterator[None]:
    """Turns every failure of the engine into Retry, with what it said; NotFound stays what it is."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.NotFound:
        raise
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Retry(f"Docker engine: {first_line(error)[:300]}") from error


class EngineBuilder:
    """Model images by the engine, pushed to `registry` if there is one. runtime: the image that they are layers on."""

    def __init__(self, engine: Any, runtime: Runtime | str, registry: Registry | None = None) -> None:
        self._engine = engine
        self._runtime = runtime
        self._registry = registry

    def build(self, spec: DeploymentSpec) -> str:
        """See `Builder.build`. Without a registry the image is named by its id in the engine."""
        tag = layers.tag(spec)
        if self._registry is not None and (found := adopted(self._registry, tag, spec)) is not None:
            return found
        with engine_may_fail():
            runtime = self._runtime if isinstance(self._runtime, str) else self._runtime.image()
            image = self._local(spec, runtime) or self._built(spec, runtime)
            reach("deploy.built")
            if self._registry is None:
                image.tag(f"driftloop-model-{spec.model}", tag)
                return str(image.id)
            image.tag(self._registry.repository, tag)
            digest = push(self._engine, self._registry, tag)
        reach("deploy.pushed")
        return f"{self._registry.repository}@{digest}"

    def forget(self, image: str) -> None:
        """See `Builder.forget`."""
        import docker.errors

        if self._registry is not None and "@" in image:
            self._registry.delete(image.partition("@")[2])
        with engine_may_fail():
            try:
                self._engine.images.remove(image, force=True)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError as error:
                if error.status_code != 409:  # somebody else's container runs it
                    raise

    def _local(self, spec: DeploymentSpec, runtime: str) -> Any | None:
        """What an attempt before a crash has built."""
        labels = [f"{name}={value}" for name, value in _labels(spec, runtime).items()]
        return next(iter(self._engine.images.list(filters={"label": labels})), None)

    def _built(self, spec: DeploymentSpec, runtime: str) -> Any:
        # In one step: each of the API's own `labels` would be a step, and a container, of its own (0.1 to 0.6 s).
        labels = " ".join(f'"{name}"="{value}"' for name, value in _labels(spec, runtime).items())
        dockerfile = f"FROM {runtime}\nADD model.tar /\nLABEL {labels}\nCMD {json.dumps(layers.command(spec))}\n"
        context = _tar({"Dockerfile": dockerfile.encode(), "model.tar": layers.tar(spec.folder, spec.digest)})
        image, _ = self._engine.images.build(fileobj=context, custom_context=True, rm=True, forcerm=True)
        return image


class Runtime:
    """The runtime image on an engine: built when it is first needed, then found by what is in it."""

    def __init__(self, engine: Any, base: str | None = None) -> None:
        self._engine = engine
        self._base = base or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"

    @property
    def tag(self) -> str:
        """Over everything that is in the image, as far as it is ours."""
        return _hash(self._dependencies, _HERE / "Dockerfile", *_sources())

    @property
    def _dependencies(self) -> str:
        """The image with the dependencies, which lives longer."""
        said = f"{self._base} {sys.version_info[:2]} {self._engine.info()['Architecture']}"
        return (
            f"{RUNTIME_NAME}-dependencies:{_hash(said, _HERE / 'dependencies.Dockerfile', _HERE / 'requirements.txt')}"
        )

    def image(self) -> str:
        """Its name in the engine, after building it if need be. Raises Retry, and UserError without pip."""
        name = f"{RUNTIME_NAME}:{self.tag}"
        with engine_may_fail(), TemporaryDirectory() as folder:
            context = Path(folder)
            if not self._has(self._dependencies):
                log.info("runtime.building", image=self._dependencies, base=self._base)
                _install(context / "lib", self._engine.info()["Architecture"])
                self._build(context, "dependencies.Dockerfile", self._dependencies, BASE_IMAGE=self._base)
                shutil.rmtree(context / "lib")
            if not self._has(name):
                for path in _sources():
                    into = context / "app" / path.relative_to(_ROOT)
                    into.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, into)
                self._build(context, "Dockerfile", name, DEPENDENCIES=self._dependencies)
        return name

    def _has(self, name: str) -> bool:
        import docker.errors

        try:
            self._engine.images.get(name)
        except docker.errors.NotFound:
            return False
        return True

    def _build(self, context: Path, dockerfile: str, name: str, **arguments: str) -> None:
        shutil.copyfile(_HERE / dockerfile, context / "Dockerfile")
        self._engine.images.build(path=str(context), tag=name, buildargs=arguments, rm=True, forcerm=True)

    def push(self, registry: Registry) -> str:
        """The image in the registry, by digest. Raises as `image` does."""
        tag = f"runtime-{self.tag}"
        if (found := registry.find(tag)) is None:
            with engine_may_fail():
                self._engine.images.get(self.image()).tag(registry.repository, tag)
                return f"{registry.repository}@{push(self._engine, registry, tag)}"
        return f"{registry.repository}@{found.digest}"


def _labels(spec: DeploymentSpec, runtime: str) -> dict[str, str]:
    return layers.labels(spec) | {layers.RUNTIME_LABEL: layers.plain(runtime)}


def _hash(said: str, *paths: Path) -> str:
    """Twelve hex digits over a text and files."""
    content = hashlib.sha256(said.encode())
    for path in paths:
        content.update(f"{path.relative_to(_ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()[:12]


def push(engine: Any, registry: Registry, tag: str) -> str:
    """The digest under which the registry now has repository:tag. Raises Retry with what the registry said."""
    digest = None
    stream = engine.api.push(
        registry.repository, tag=tag, stream=True, decode=True, auth_config=registry.docker_login()
    )
    for said in stream:
        if "error" in said:
            raise Retry(f"registry {registry.host}: {said['error'][:300]}")
        digest = said.get("aux", {}).get("Digest", digest)
    if digest is None:
        raise Retry(f"registry {registry.host}: the push of {tag} ended without a digest")
    return str(digest)


def _sources() -> Iterable[Path]:
    return sorted(path for name in _PACKAGES for path in (_ROOT / name).rglob("*.py"))


def _install(into: Path, architecture: str) -> None:
    """The locked dependencies for Linux, from wheels only, their hashes checked; nothing of them runs."""
    libc = [f"manylinux_{version}_{architecture}" for version in ("2_28", "2_27", "2_17")]
    platforms = [f"--platform={each}" for each in (*libc, f"manylinux2014_{architecture}")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--require-hashes", "--only-binary=:all:", "--target", str(into), *platforms),
            *("--implementation=cp", f"--python-version={platform.python_version()}"),
            *("-r", str(_HERE / "requirements.txt")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"the runtime image's dependencies cannot be installed with pip: {said[-1][:300]}")


def _tar(files: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    packed.seek(0)
    return packed
