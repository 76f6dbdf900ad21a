"""The builder that needs no Docker: a model's layer is put beside the runtime image's layers in the registry.

Reproducible: the same model on the same runtime image gives the same digest, whenever and wherever it is built.
"""

from __future__ import annotations

import io
import json
from typing import Any, Final

from deploy.image import layer as layers
from deploy.image.registry import Found, Registry
from deploy.target import DeploymentSpec
from schemas.errors import Reject, Retry
from schemas.failpoints import reach

_LAYER_TYPES: Final = {
    "application/vnd.docker.distribution.manifest.v2+json": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.oci.image.manifest.v1+json": "application/vnd.oci.image.layer.v1.tar+gzip",
}


class AppendBuilder:
    """runtime: tag or digest of the runtime image in the same repository, so that its layers are there already."""

    def __init__(self, registry: Registry, runtime: str) -> None:
        self._registry = registry
        self._runtime = runtime

    def build(self, spec: DeploymentSpec) -> str:
        """See `Builder.build`."""
        tag = layers.tag(spec)
        if (found := adopted(self._registry, tag, spec)) is not None:
            return found
        runtime = self._registry.find(self._runtime)
        if runtime is None:
            raise Retry(
                f"{self._registry.repository} has no {self._runtime}; `driftloop runtime-image` pushes a runtime image"
            )
        if runtime.media_type not in _LAYER_TYPES:
            raise Retry(
                f"runtime image {self._runtime} is of type {runtime.media_type}; one platform's image is needed"
            )
        layer = layers.layer(spec)
        reach("deploy.built")
        config = _canonical(_config(runtime, layer, spec))
        name = self._registry.name
        with self._registry.client() as client:
            client.upload_blob(name, io.BytesIO(layer.blob))
            digest, size = client.upload_blob(name, io.BytesIO(config))
            manifest = _manifest(runtime, layer, digest, size)
            pushed = client.set_manifest(name, io.BytesIO(_canonical(manifest)), tag=tag, media_type=runtime.media_type)
        reach("deploy.pushed")
        return f"{self._registry.repository}@{pushed}"

    def forget(self, image: str) -> None:
        """See `Builder.forget`."""
        self._registry.delete(image.partition("@")[2])


def adopted(registry: Registry, tag: str, spec: DeploymentSpec) -> str | None:
    """The image that the tag names, if there is one. Raises Reject: `tag-taken` if it is another model's."""
    found = registry.find(tag)
    if found is None:
        return None
    if found.labels.get(layers.DIGEST_LABEL) != spec.digest:
        raise Reject("tag-taken", f"{registry.repository}:{tag} is another image; a tag is never moved")
    return f"{registry.repository}@{found.digest}"


def _config(runtime: Found, layer: layers.Layer, spec: DeploymentSpec) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(runtime.config))
    own = config.setdefault("config", {})
    own["Labels"] = {**(own.get("Labels") or {}), **layers.labels(spec)}
    own["Cmd"] = layers.command(spec)
    config["rootfs"]["diff_ids"].append(layer.diff_id)
    config.setdefault("history", []).append({"created_by": f"driftloop {spec.label}"})
    return config


def _manifest(runtime: Found, layer: layers.Layer, config_digest: str, config_size: int) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(json.dumps(runtime.manifest))
    manifest["config"] |= {"digest": config_digest, "size": config_size}
    added = {"mediaType": _LAYER_TYPES[runtime.media_type], "digest": layer.digest, "size": len(layer.blob)}
    manifest["layers"].append(added)
    return manifest


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
