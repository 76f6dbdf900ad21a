"""What a model adds to the runtime image: one layer, labels and a command; the same bytes each time for one model."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from deploy import modelfiles
from deploy.target import DeploymentSpec

PORT: Final = 8080
FOLDER: Final = "opt/model"
MODEL_LABEL: Final = "io.driftloop.model"
VERSION_LABEL: Final = "io.driftloop.version"
DIGEST_LABEL: Final = "io.driftloop.digest"
RUNTIME_LABEL: Final = "io.driftloop.runtime"


class Builder(Protocol):
    """Makes a model's image, or finds the one that was made before."""

    def build(self, spec: DeploymentSpec) -> str:
        """The image, by digest. Raises Retry if engine or registry are not there, Reject: `tag-taken`."""

    def forget(self, image: str) -> None:
        """Removes an image that `build` gave. Raises Retry."""


@dataclass(frozen=True, slots=True)
class Layer:
    """blob: tar.gz; digest: of the blob; diff_id: of the tar inside, as an image's config names it."""

    blob: bytes
    digest: str
    diff_id: str


def labels(spec: DeploymentSpec) -> dict[str, str]:
    """What an image says of its model. Nothing of them is secret, and nothing depends on when it was built.

    Run and event are not covered by the model's signature: what could mean something in a Dockerfile becomes "_".
    """
    return {
        "org.opencontainers.image.title": f"Driftloop model {spec.model}",
        "org.opencontainers.image.version": spec.version,
        "io.driftloop.run": plain(spec.run_id),
        "io.driftloop.drift-event": plain(spec.cause),
        MODEL_LABEL: spec.model,
        VERSION_LABEL: spec.version,
        DIGEST_LABEL: spec.digest,
    }


def plain(said: str) -> str:
    """At most 128 letters, digits and signs of ids and image names."""
    return re.sub(r"[^A-Za-z0-9._:/@-]", "_", said[:128])


def command(spec: DeploymentSpec) -> list[str]:
    """What runs in the container as its first process: the scoring server of the process target."""
    return [
        *("python3", "-m", "workers.serve"),
        *("--model", spec.model, "--version", spec.version, "--digest", spec.digest),
        *("--folder", f"/{FOLDER}", "--host", "0.0.0.0", "--port", str(PORT)),  # noqa: S104  a container's own address
    ]


def tag(spec: DeploymentSpec) -> str:
    """Never moved to other content: it names the content."""
    return f"{spec.label}-{spec.digest.removeprefix('sha256:')[:12]}"


def tar(folder: Path, digest: str, prefix: str = FOLDER) -> bytes:
    """The model's files below `prefix`, owned by root and readable by all, without times.

    Raises Reject: `digest-mismatch` if the bytes that were packed are not those of the digest.
    """
    modelfiles.verify(folder, digest)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made: set[str] = set()
        for name in modelfiles.manifest(folder):
            parts = f"{prefix}/{name}".split("/")
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                if above not in made:
                    made.add(above)
                    entry = tarfile.TarInfo(above)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo("/".join(parts))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def layer(spec: DeploymentSpec) -> Layer:
    """The model's layer. Raises as `tar` does."""
    content = tar(spec.folder, spec.digest)
    blob = gzip.compress(content, 6, mtime=0)
    return Layer(blob, _sha256(blob), _sha256(content))


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
