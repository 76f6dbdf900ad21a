"""The target `aci`: a container group of Azure Container Instances for each version.

Updating a group restarts its containers in place, so a group is never updated: a version that is not as it should be is
deleted and made again, and a new version has a group and an address of its own.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from deploy import modelfiles
from deploy.image.layer import PORT, Builder
from deploy.image.registry import Registry
from deploy.target import LOG_LINES, Deployment, DeploymentSpec, label
from schemas.errors import Reject, Retry

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.mgmt.containerinstance import ContainerInstanceManagementClient
    from azure.mgmt.containerinstance.models import ContainerGroup

log = structlog.get_logger()

MANAGED_BY: Final = "driftloop"
_CONTAINER: Final = "model"
_GIB: Final = 1024
# Waiting for the operation of a create or delete; afterwards the group is looked at anew, whatever became of it.
_OPERATION_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where groups are made. scope: whose they are. identity: resource id of the identity that pulls images.

    endpoint, ca: of Azure Resource Manager. polling_seconds: between two looks at an operation, unless Azure names it.
    """

    subscription: str
    resource_group: str
    location: str
    scope: str
    dns_prefix: str
    identity: str | None = None
    endpoint: str = "https://management.azure.com"
    ca: Path | None = None
    cpus: float = 1.0
    memory_mb: int = 512
    polling_seconds: float = 5.0
    operation_seconds: float = _OPERATION_S


class AciTarget:
    """See `Target`. registry: where the builder puts images; its login is handed to Azure if there is no identity."""

    name: Final = "aci"

    def __init__(
        self,
        place: Place,
        credential: TokenCredential,
        builder: Builder,
        registry: Registry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._credential = credential
        self._builder = builder
        self._registry = registry
        self._clock = clock
        self._not_before = float("-inf")  # Azure refuses, and counts, what comes before its Retry-After

    def create(self, spec: DeploymentSpec) -> Deployment:
        """See `Target.create`. Returns once Azure says that the group is there, which is before it answers."""
        modelfiles.verify(spec.folder, spec.digest)
        image = self._builder.build(spec)
        with self._azure() as client:
            found = self._get(client, spec.label)
            if found is not None and not _is_as_wanted(found, spec, image):
                log.warning("group.replaced", deployment=spec.label, state=found.provisioning_state)
                self._wait(client.container_groups.begin_delete(self._place.resource_group, self._name(spec.label)))
                found = None
            if found is None or found.provisioning_state != "Succeeded":
                # The same body again is the way to learn what became of a create whose answer was lost.
                group = self._wanted(spec, image)
                self._wait(
                    client.container_groups.begin_create_or_update(
                        self._place.resource_group, self._name(spec.label), group
                    )
                )
                found = self._get(client, spec.label)
        if found is None:
            raise Retry(f"{spec.label}: Azure has accepted the container group and does not have it")
        deployment = self._deployment(found)
        if found.provisioning_state == "Failed":
            raise self.ended(deployment) or Retry(f"{spec.label}: Azure could not provision the container group")
        log.info("group.created", deployment=spec.label, endpoint=deployment.endpoint)
        return deployment

    def find(self, model: str, version: str) -> Deployment | None:
        """See `Target.find`."""
        with self._azure() as client:
            found = self._get(client, label(model, version))
        if found is None or found.provisioning_state == "Failed" or _exit_code(found) is not None:
            return None
        return self._deployment(found)

    def list(self, model: str) -> tuple[Deployment, ...]:
        """See `Target.list`. Groups that failed are among them: they too have to be taken away."""
        with self._azure() as client:
            groups = list(client.container_groups.list_by_resource_group(self._place.resource_group))
        ours = [group for group in groups if self._is_ours(group) and (group.tags or {}).get("model") == model]
        return tuple(map(self._deployment, ours))

    def delete(self, deployment: Deployment) -> None:
        """See `Target.delete`. A group that does not carry our tags is left alone."""
        with self._azure() as client:
            found = self._get(client, deployment.label)
            if found is not None:
                self._wait(
                    client.container_groups.begin_delete(self._place.resource_group, self._name(deployment.label))
                )

    def ended(self, deployment: Deployment) -> Retry | Reject | None:
        """See `Target.ended`."""
        with self._azure() as client:
            found = self._get(client, deployment.label)
            if found is None:
                return Retry(f"{deployment.label} is no longer there")
            code = _exit_code(found)
            if code is None and found.provisioning_state != "Failed":
                return None
            said = self._last_lines(client, deployment.label)
        if code:
            return Reject("crashed", f"{deployment.label} ended with exit code {code}; its last lines:\n{said}")
        return Retry(f"{deployment.label}: {_events(found) or 'the container group failed'}; its last lines:\n{said}")

    def forget(self, images: Sequence[str]) -> None:
        """See `Target.forget`."""
        for image in images:
            self._builder.forget(image)

    # -- Azure ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _azure(self) -> Iterator[ContainerInstanceManagementClient]:
        """A client; its errors become Retry, and nothing is asked before Azure wants to be asked again."""
        from azure.core.exceptions import AzureError
        from azure.mgmt.containerinstance import ContainerInstanceManagementClient

        if (wait := self._not_before - self._clock()) > 0:
            raise Retry(f"Azure wants to be asked again in {wait:.0f} s")
        arguments: dict[str, Any] = {} if self._place.ca is None else {"connection_verify": str(self._place.ca)}
        try:
            with ContainerInstanceManagementClient(
                self._credential,
                self._place.subscription,
                base_url=self._place.endpoint,
                credential_scopes=[f"{self._place.endpoint}/.default"],
                polling_interval=self._place.polling_seconds,
                retry_total=3,
                connection_timeout=10,
                read_timeout=30,
                per_retry_policies=[_noting(self._note)],
                **arguments,
            ) as client:
                yield client
        except AzureError as error:
            raise Retry(f"Azure: {_in_a_line(error)}") from error

    def _note(self, status: int, after: str) -> None:
        """An answer has come, maybe to a poller that went on in its thread after we had given it up."""
        if status >= 400 and re.fullmatch(r"[0-9]{1,6}", after):
            self._not_before = max(self._not_before, self._clock() + int(after))

    def _get(self, client: ContainerInstanceManagementClient, label: str) -> ContainerGroup | None:
        """The group, if it is there and ours. Raises Retry if somebody else's has its name."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = client.container_groups.get(self._place.resource_group, self._name(label))
        except ResourceNotFoundError as error:
            if error.error is not None and error.error.code == "ResourceGroupNotFound":
                raise
            return None
        if not self._is_ours(found):
            raise Retry(f"container group {self._name(label)} is not ours; delete it or set DRIFTLOOP_ACI_DNS_PREFIX")
        return found

    def _wait(self, poller: Any) -> None:
        """Until the operation has ended, well or not; what it left is looked at later. Raises Retry if it goes on."""
        from azure.core.exceptions import HttpResponseError

        try:
            poller.result(self._place.operation_seconds)
        except HttpResponseError as error:
            if error.status_code is not None and error.status_code >= 400:
                raise
            log.warning("group.operation-failed", error=_in_a_line(error))
        if not poller.done():
            raise Retry(f"Azure has not finished within {self._place.operation_seconds:.0f} s")

    def _last_lines(self, client: ContainerInstanceManagementClient, label: str) -> str:
        from azure.core.exceptions import HttpResponseError

        try:
            logs = client.containers.list_logs(
                self._place.resource_group, self._name(label), _CONTAINER, tail=LOG_LINES
            )
        except HttpResponseError:  # there are none before it has started
            return "(no log)"
        return (logs.content or "(no log)")[-800:]

    def _name(self, label: str) -> str:
        """The group's name and DNS label: 63 characters of a-z, 0-9 and -, in which a version's dots become -."""
        name = re.sub(r"[^a-z0-9-]", "-", f"{self._place.dns_prefix}-{label}".lower())
        if len(name) <= 63:
            return name.rstrip("-")
        # Cut off, the versions of a long-named model would be one group.
        return f"{name[:54].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def _is_ours(self, group: ContainerGroup) -> bool:
        tags = group.tags or {}
        return tags.get("managed-by") == MANAGED_BY and tags.get("stack") == self._place.scope

    def _wanted(self, spec: DeploymentSpec, image: str) -> ContainerGroup:
        """The body of the create call; the same for the same version, so that it can be sent again."""
        from azure.mgmt.containerinstance import models

        place = self._place
        probe = models.ContainerHttpGet(path="/ping", port=PORT, scheme="http")
        return models.ContainerGroup(
            location=place.location,
            os_type="Linux",
            restart_policy="Always",
            sku="Standard",
            tags={
                "managed-by": MANAGED_BY,
                "stack": place.scope,
                "model": spec.model,
                "version": spec.version,
                "digest": spec.digest,
                "image": image,
                "event-id": spec.cause,
            },
            identity=None
            if place.identity is None
            else models.ContainerGroupIdentity(
                type="UserAssigned",
                user_assigned_identities={place.identity: models.UserAssignedIdentities()},
            ),
            image_registry_credentials=self._pull_login(),
            containers=[
                models.Container(
                    name=_CONTAINER,
                    image=image,
                    ports=[models.ContainerPort(port=PORT, protocol="TCP")],
                    resources=models.ResourceRequirements(
                        requests=models.ResourceRequests(
                            cpu=place.cpus, memory_in_gb=max(0.5, round(place.memory_mb / _GIB, 1))
                        )
                    ),
                    liveness_probe=models.ContainerProbe(
                        http_get=probe, initial_delay_seconds=30, period_seconds=10, failure_threshold=3
                    ),
                    readiness_probe=models.ContainerProbe(http_get=probe, initial_delay_seconds=2, period_seconds=5),
                )
            ],
            ip_address=models.IpAddress(
                type="Public",
                ports=[models.Port(port=PORT, protocol="TCP")],
                dns_name_label=self._name(spec.label),
                auto_generated_domain_name_label_scope="ResourceGroupReuse",
            ),
        )

    def _pull_login(self) -> Any:
        """How Azure pulls: by identity; by password where the registry has only that, which Azure never shows again."""
        from azure.mgmt.containerinstance import models

        server = self._registry.host
        if self._place.identity is not None:
            return [models.ImageRegistryCredential(server=server, identity=self._place.identity)]
        if self._registry.auth == "basic":
            login = self._registry.docker_login() or {}
            return [models.ImageRegistryCredential(server=server, **login)]
        return None

    def _deployment(self, group: ContainerGroup) -> Deployment:
        """The address is read back: Azure puts a hash into the name that was asked for."""
        tags, address = group.tags or {}, group.ip_address
        host = (address.fqdn or address.ip or "") if address else ""
        return Deployment(
            self.name,
            tags.get("model", ""),
            tags.get("version", ""),
            tags.get("digest", ""),
            f"http://{host}:{PORT}",
            str(group.id),
            tags.get("image"),
        )


def _noting(note: Callable[[int, str], None]) -> Any:
    """A policy that tells of each answer its status and its Retry-After."""
    from azure.core.pipeline.policies import SansIOHTTPPolicy

    class Noting(SansIOHTTPPolicy):  # type: ignore[type-arg]  # generic in what it only hands on
        def on_response(self, request: Any, response: Any) -> None:
            note(response.http_response.status_code, response.http_response.headers.get("Retry-After", ""))

    return Noting()


def _is_as_wanted(group: ContainerGroup, spec: DeploymentSpec, image: str) -> bool:
    tags = group.tags or {}
    same = tags.get("digest") == spec.digest and [each.image for each in group.containers] == [image]
    return same and group.provisioning_state != "Failed" and _exit_code(group) is None


def _exit_code(group: ContainerGroup) -> int | None:
    """Of the container, if it does not run and has run: now, or before the restart that Azure is about to try."""
    for container in group.containers:
        view = container.instance_view
        states: Sequence[Any] = (view.current_state, view.previous_state) if view else ()
        for state in states:
            if state is not None and state.state == "Running":
                break
            if state is not None and state.state == "Terminated" and state.exit_code:
                return int(state.exit_code)
    return None


def _events(group: ContainerGroup) -> str:
    """What Azure last said of the group, such as an image that it cannot pull."""
    told: list[Any] = list(group.instance_view.events or ()) if group.instance_view else []
    for container in group.containers:
        told += list(container.instance_view.events or ()) if container.instance_view else []
    return "; ".join(f"{event.name}: {event.message}" for event in told[-3:])[:500]


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
