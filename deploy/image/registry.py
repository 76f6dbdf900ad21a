"""A container registry: logging in, looking up what is there, taking away what nobody needs. TLS always.

azure-containerregistry speaks the distribution API that every registry has, so it serves for all of them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx
import structlog

from schemas.errors import Retry, first_line

if TYPE_CHECKING:
    from azure.containerregistry import ContainerRegistryClient
    from azure.core.credentials import TokenCredential

log = structlog.get_logger()

_NOT_FOUND: Final = 404
_FORBIDDEN: Final = (403, 405)  # docker-registry deletes nothing unless it is told that it may
# What ACR expects as the user's name beside a refresh token.
_ACR_USER: Final = "00000000-0000-0000-0000-000000000000"
_ACR_SCOPE: Final = "https://containerregistry.azure.net/.default"


@dataclass(frozen=True, slots=True)
class Found:
    """An image in the registry. digest: of its manifest; config: its configuration."""

    digest: str
    manifest: dict[str, Any]
    media_type: str
    config: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """The image's labels."""
        return dict(self.config.get("config", {}).get("Labels") or {})


@dataclass(frozen=True, kw_only=True)
class Registry:
    """One repository. repository: registry.example/name; credential: for `azure`; ca: None is the system's."""

    repository: str
    auth: Literal["none", "basic", "azure"] = "none"
    username: str | None = None
    password: str | None = None
    credential: TokenCredential | None = None
    ca: Path | None = None

    @property
    def host(self) -> str:
        """The registry's address."""
        return self.repository.partition("/")[0]

    @property
    def name(self) -> str:
        """The repository's name there."""
        return self.repository.partition("/")[2]

    @contextmanager
    def client(self) -> Iterator[ContainerRegistryClient]:
        """For one piece of work only: azure-containerregistry 1.2 never renews a token that has expired.

        Errors inside the block become Retry; what is not there stays ResourceNotFoundError.
        """
        from azure.containerregistry import ContainerRegistryClient
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        arguments: dict[str, Any] = {"retry_total": 3, "connection_timeout": 10, "read_timeout": 60}
        if self.ca is not None:
            arguments["connection_verify"] = str(self.ca)
        if self.auth == "basic":
            arguments["per_call_policies"] = [_basic(self.username or "", self.password or "")]
        credential = self.credential if self.auth == "azure" else None
        try:
            with ContainerRegistryClient(f"https://{self.host}", credential, **arguments) as client:
                yield client
        except ResourceNotFoundError:
            raise
        except KeyError as error:  # it reads a challenge of Basic, which says that the login is wrong, as ACR's
            raise Retry(f"registry {self.host} refuses our login ({self.auth}); its answer lacks {error}") from error
        except AzureError as error:
            raise Retry(f"registry {self.host}: {first_line(error)[:300]}") from error

    def find(self, reference: str) -> Found | None:
        """The image of a tag or digest; None if there is none. Raises Retry."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            with self.client() as client:
                got: Any = client.get_manifest(self.name, reference)
                manifest: dict[str, Any] = dict(got.manifest)
                # An index of several platforms has no configuration of its own.
                config = manifest.get("config", {}).get("digest")
                content = b"".join(client.download_blob(self.name, config)) if config else b"{}"
        except ResourceNotFoundError:
            return None
        return Found(got.digest, manifest, got.media_type, json.loads(content))

    def try_push(self) -> None:
        """Puts there what every registry knows, an empty JSON object; it belongs to no image. Raises Retry."""
        with self.client() as client:
            client.upload_blob(self.name, io.BytesIO(b"{}"))

    def delete(self, digest: str) -> None:
        """Takes an image away; one that is gone already, or that may not be deleted, is passed over. Raises Retry."""
        from azure.core.exceptions import HttpResponseError

        with self.client() as client:
            try:
                client.delete_manifest(self.name, digest)
            except HttpResponseError as error:
                if error.status_code in _FORBIDDEN:
                    log.warning("image.kept", image=f"{self.repository}@{digest}", status=error.status_code)
                elif error.status_code != _NOT_FOUND:
                    raise

    def docker_login(self) -> dict[str, str] | None:
        """What the Docker engine needs to push and pull; lasts for three hours on ACR. Raises Retry."""
        if self.auth == "none":
            return None
        if self.auth == "basic":
            return {"username": self.username or "", "password": self.password or ""}
        assert self.credential is not None
        from azure.core.exceptions import AzureError

        try:
            token = self.credential.get_token(_ACR_SCOPE).token
            form = {"grant_type": "access_token", "service": self.host, "access_token": token}
            verify: Any = True if self.ca is None else _trusting(self.ca)
            reply = httpx.post(f"https://{self.host}/oauth2/exchange", data=form, verify=verify, timeout=20)
            reply.raise_for_status()
            return {"username": _ACR_USER, "password": reply.json()["refresh_token"]}
        except (AzureError, httpx.HTTPError, ValueError, KeyError) as error:
            raise Retry(f"registry {self.host} gives us no token: {first_line(error)[:300]}") from error


def _trusting(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))


def _basic(username: str, password: str) -> Any:
    """A policy that logs in with every request."""
    from azure.core.pipeline.policies import SansIOHTTPPolicy

    token = base64.b64encode(f"{username}:{password}".encode()).decode()

    class Basic(SansIOHTTPPolicy):  # type: ignore[type-arg]  # generic in what it only hands on
        def on_request(self, request: Any) -> None:
            request.http_request.headers["Authorization"] = f"Basic {token}"

    return Basic()
