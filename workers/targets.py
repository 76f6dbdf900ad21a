"""The target that the settings name, with everything that it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploy.process import ProcessTarget
from deploy.target import DeploymentSpec, Target
from schemas.errors import UserError
from schemas.settings import Settings, variable

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

    from deploy.image.layer import Builder
    from deploy.image.registry import Registry


def make_target(settings: Settings) -> Target:
    """Where models are deployed. Raises UserError if a setting that the target needs is missing, Retry."""
    if settings.target == "docker":
        return _docker(settings)
    if settings.target == "aci":
        return _aci(settings)
    return ProcessTarget(settings.home, serve_command, starting_seconds=settings.ready_seconds)


def prepare(settings: Settings, say: Callable[[str], None]) -> None:
    """What takes long the first time, before anybody waits for it: the runtime image. Raises as `make_target` does."""
    if settings.target != "process" and settings.image_builder == "docker" and settings.runtime_image is None:
        from deploy.image.engine import Runtime, connect

        say("the runtime image is built, unless it is there already")
        Runtime(connect(), settings.base_image).image()


def clear(settings: Settings) -> None:
    """Takes every version away that this scope has on an engine or in Azure; processes end with their stack."""
    if settings.target != "process":
        target = make_target(settings)
        for deployment in target.list(settings.model):
            target.delete(deployment)


def serve_command(spec: DeploymentSpec, port: int) -> list[str]:
    """How the scoring process of a version is started."""
    return [
        *(sys.executable, "-m", "workers.serve"),
        *("--model", spec.model, "--version", spec.version, "--digest", spec.digest),
        *("--folder", str(spec.folder), "--port", str(port)),
    ]


def scope(settings: Settings) -> str:
    """Whose containers these are: the home on this machine, and the namespace where several share an Azure."""
    return settings.namespace.rstrip(".") or str(settings.home.resolve())


def credential() -> TokenCredential:
    """As azure-identity finds it: environment, workload identity, managed identity, `az login`; no setting has it."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(exclude_interactive_browser_credential=True)


def registry(settings: Settings) -> Registry | None:
    """The registry of the settings, if they name one. Raises UserError."""
    from deploy.image.registry import Registry

    if settings.image_repository is None:
        return None
    if settings.registry_auth == "basic":
        _needed(settings, "registry_username", "registry_password")
    return Registry(
        repository=settings.image_repository,
        auth=settings.registry_auth,
        username=settings.registry_username,
        password=settings.registry_password.get_secret_value() if settings.registry_password else None,
        credential=credential() if settings.registry_auth == "azure" else None,
        ca=settings.registry_ca,
    )


def builder(settings: Settings, found: Registry | None) -> Builder:
    """Who makes the images. Raises UserError."""
    if settings.image_builder == "docker":
        from deploy.image.engine import EngineBuilder, Runtime, connect

        engine = connect()
        return EngineBuilder(engine, settings.runtime_image or Runtime(engine, settings.base_image), found)
    from deploy.image.append import AppendBuilder

    _needed(settings, "image_repository", "runtime_image")
    assert found is not None
    name, at, reference = (settings.runtime_image or "").partition("@")
    if not at:
        name, _, reference = name.rpartition(":")
    if name != settings.image_repository:
        raise UserError(
            f"DRIFTLOOP_RUNTIME_IMAGE={settings.runtime_image}: with the builder `registry` it has to lie in "
            f"{settings.image_repository}; `driftloop runtime-image` pushes it there"
        )
    return AppendBuilder(found, reference)


def _docker(settings: Settings) -> Target:
    from deploy.containers import DockerTarget
    from deploy.image.engine import connect

    found = registry(settings)
    return DockerTarget(
        connect(),
        builder(settings, found),
        scope=scope(settings),
        registry=found,
        cpus=settings.serving_cpus,
        memory_mb=settings.serving_memory_mb,
    )


def _aci(settings: Settings) -> Target:
    from deploy.aci import AciTarget, Place

    _needed(settings, "aci_subscription", "aci_resource_group", "image_repository")
    found = registry(settings)
    assert found is not None
    place = Place(
        subscription=settings.aci_subscription or "",
        resource_group=settings.aci_resource_group or "",
        location=settings.aci_location,
        scope=scope(settings),
        dns_prefix=settings.aci_dns_prefix,
        identity=settings.aci_identity,
        endpoint=settings.azure_endpoint.rstrip("/"),
        ca=settings.azure_ca,
        cpus=settings.serving_cpus,
        memory_mb=settings.serving_memory_mb,
        operation_seconds=max(settings.ready_seconds, 60.0) * 10,
    )
    return AciTarget(place, credential(), builder(settings, found), found)


def _needed(settings: Settings, *names: str) -> None:
    missing = [variable(name) for name in names if getattr(settings, name) is None]
    if missing:
        raise UserError(f"target {settings.target} needs {', '.join(missing)}")
