"""`driftloop doctor`, the part about where models are deployed: each thing that the first deployment will need."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import httpx

from schemas.errors import Retry, UserError
from schemas.settings import Settings
from workers import targets

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

_IDENTITY_API: Final = "2023-01-31"  # of Microsoft.ManagedIdentity
_PERMISSIONS_API: Final = "2022-04-01"  # of Microsoft.Authorization
_ON_GROUP: Final = tuple(f"Microsoft.ContainerInstance/containerGroups/{verb}" for verb in ("read", "write", "delete"))
_ON_IDENTITY: Final = ("Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",)
_GROUP_ROLE: Final = "the role Azure Container Instances Contributor Role on the resource group is needed"
_UNTOLD: Final = "; what we may do there Azure does not tell"
_IDENTITY_ROLE: Final = "the role Managed Identity Operator on it is needed"
_MEND_AZURE = "`az login`, a managed identity or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. detail: what was found, and if it is not good, how to mend it."""

    what: str
    good: bool
    detail: str


def examine(settings: Settings) -> Iterator[Finding]:
    """What target and trust need, in the order in which one depends on the other."""
    yield _keys(settings)
    if settings.target == "docker" or (settings.target == "aci" and settings.image_builder == "docker"):
        yield _engine(settings)
    if settings.target == "aci":
        found = list(_azure(settings))
        yield from found
        if not all(each.good for each in found):
            return
    if settings.target != "process" and settings.image_repository is not None:
        yield _registry(settings)


def _keys(settings: Settings) -> Finding:
    folder = settings.trusted_folder
    count = len(list(folder.glob("*.pem"))) if folder.is_dir() else 0
    if not count and settings.signing_key is None and settings.signing_secret is None:
        return Finding("trust", True, f"no key in {folder} yet; the retrain worker makes one when it starts")
    if not count:
        return Finding("trust", False, f"no public key in {folder}: `openssl pkey -in KEY -pubout` writes one there")
    return Finding("trust", True, f"{count} public key{'s' if count > 1 else ''} in {folder}")


def _engine(settings: Settings) -> Finding:
    from deploy.image.engine import connect, engine_may_fail

    try:
        with engine_may_fail():
            version = connect().version()["Version"]
    except Retry as error:
        return Finding("Docker engine", False, f"{error}; start it, or set DOCKER_HOST")
    return Finding("Docker engine", True, f"version {version}, target {settings.target}")


def _registry(settings: Settings) -> Finding:
    try:
        found = targets.registry(settings)
        assert found is not None
        targets.builder(settings, found)
        image = settings.runtime_image
        inside = image is not None and image.startswith(settings.image_repository or "")
        reference = (image or "").partition("@")[2] or (image or "").rpartition(":")[2]
        runtime = found.find(reference if inside else "latest")
        found.try_push()
    except (Retry, UserError) as error:
        mend = "check DRIFTLOOP_REGISTRY_*; on ACR the role AcrPush is needed"
        return Finding("registry", False, f"{error}; {mend}")
    if inside and runtime is None:
        return Finding("registry", False, f"{image} is not there; `driftloop runtime-image` pushes it")
    return Finding("registry", True, f"{settings.image_repository} takes what we push")


def _azure(settings: Settings) -> Iterator[Finding]:
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.mgmt.containerinstance import ContainerInstanceManagementClient

    try:
        targets.make_target(settings)
    except (UserError, Retry) as error:
        yield Finding("settings", False, str(error))
        return
    endpoint = settings.azure_endpoint.rstrip("/")
    try:
        credential = targets.credential()
        credential.get_token(f"{endpoint}/.default")
    except AzureError as error:
        said = " ".join(str(error).split())[:200]
        yield Finding("Azure login", False, f"nobody vouches for us ({said}); {_MEND_AZURE}")
        return
    yield Finding("Azure login", True, f"a token for {endpoint}")
    arguments = {} if settings.azure_ca is None else {"connection_verify": str(settings.azure_ca)}
    client = ContainerInstanceManagementClient(
        credential,
        settings.aci_subscription or "",
        base_url=endpoint,
        credential_scopes=[f"{endpoint}/.default"],
        retry_total=1,
        **arguments,
    )
    group = settings.aci_resource_group or ""
    try:
        count = len(list(client.container_groups.list_by_resource_group(group)))
    except HttpResponseError as error:
        mend = "`az group create`, or check AZURE_SUBSCRIPTION_ID and DRIFTLOOP_ACI_RESOURCE_GROUP"
        if error.status_code in (401, 403):
            mend = _GROUP_ROLE
        elif error.error is not None and error.error.code == "MissingSubscriptionRegistration":
            mend = "`az provider register --namespace Microsoft.ContainerInstance`"
        yield Finding("resource group", False, f"{group}: {' '.join(str(error).split())[:200]}; {mend}")
        return
    except AzureError as error:
        yield Finding("resource group", False, f"{endpoint} does not answer: {' '.join(str(error).split())[:200]}")
        return
    scope = f"subscriptions/{settings.aci_subscription}/resourceGroups/{group}"
    lacking = _lacking(settings, credential, scope, _ON_GROUP)
    if lacking:
        yield Finding("resource group", False, f"{group}: we lack {lacking}; {_GROUP_ROLE}")
        return
    yield Finding("resource group", True, f"{group}, {count} container groups{_UNTOLD if lacking is None else ''}")
    yield _region(settings, client)
    yield _pull_identity(settings, credential)


def _region(settings: Settings, client: Any) -> Finding:
    """Whether there is room for a switch."""
    from azure.core.exceptions import AzureError

    where = settings.aci_location
    try:
        usage = next(
            (each for each in client.location.list_usage(where) if each.name and each.name.value == "ContainerGroups"),
            None,
        )
    except AzureError as error:
        return Finding("region", False, f"{where}: {' '.join(str(error).split())[:200]}")
    if usage is not None and usage.limit is not None and (usage.current_value or 0) + 2 > usage.limit:
        said = f"{usage.current_value} of {usage.limit} container groups are in use, two more are needed for a switch"
        return Finding("region", False, f"{where}: {said}; ask Azure for a higher quota")
    return Finding("region", True, where)


def _pull_identity(settings: Settings, credential: TokenCredential) -> Finding:
    """Whether it is there and we may give it to a group; whether it may pull, only whoever gives roles can see."""
    what, identity = "pull identity", settings.aci_identity
    if identity is None:
        if settings.registry_auth != "azure":
            return Finding(what, True, "the registry's own login")
        mend = "set DRIFTLOOP_ACI_IDENTITY to a user-assigned identity with the role AcrPull"
        return Finding(what, False, f"container groups could not pull from the registry; {mend}")
    try:
        reply = _ask(settings, credential, identity.strip("/"), _IDENTITY_API)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(what, False, f"{settings.azure_endpoint} does not answer: {error}")
    forbidden = reply.status_code in (401, 403)
    if not (reply.is_success or forbidden):
        mend = "`az identity create`, and check DRIFTLOOP_ACI_IDENTITY: `az identity show --query id`"
        return Finding(what, False, f"{identity}: Azure answers {reply.status_code}; {mend}")
    lacking = "the right to read it" if forbidden else _lacking(settings, credential, identity.strip("/"), _ON_IDENTITY)
    if lacking:
        return Finding(what, False, f"{identity}: we lack {lacking}; {_IDENTITY_ROLE}")
    untold = _UNTOLD if lacking is None else ""
    return Finding(what, True, f"{identity}; it needs the role AcrPull on the registry{untold}")


def _ask(settings: Settings, credential: TokenCredential, path: str, version: str) -> httpx.Response:
    """What Azure Resource Manager says of a resource. Raises httpx's errors."""
    endpoint = settings.azure_endpoint.rstrip("/")
    return httpx.get(
        f"{endpoint}/{path}",
        params={"api-version": version},
        headers={"Authorization": f"Bearer {credential.get_token(f'{endpoint}/.default').token}"},
        verify=True if settings.azure_ca is None else ssl.create_default_context(cafile=str(settings.azure_ca)),
        timeout=20,
    )


def _lacking(settings: Settings, credential: TokenCredential, scope: str, wanted: tuple[str, ...]) -> str | None:
    """The actions that we may not do there, "" if none; None where Azure does not tell.

    An action is granted by an entry that has it among its actions and not among its notActions, `*` for anything; the
    role Managed Identity Operator writes a `*` where a name would stand, which actions do not have.
    """
    try:
        reply = _ask(settings, credential, f"{scope}/providers/Microsoft.Authorization/permissions", _PERMISSIONS_API)
        entries = reply.raise_for_status().json()["value"]
        rules = [(each.get("actions") or [], each.get("notActions") or []) for each in entries]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return None

    def among(action: str, patterns: list[str]) -> bool:
        return any(fnmatchcase(action.lower(), str(pattern).lower().replace("/*/", "/*")) for pattern in patterns)

    granted = {each for each in wanted for good, bad in rules if among(each, good) and not among(each, bad)}
    return ", ".join(each for each in wanted if each not in granted)
