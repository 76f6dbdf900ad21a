"""Azure as far as we use it, over https on this machine: what the documentation says, not what Azure does.

The product talks to it unchanged: its addresses and its certificate's authority are settings, the token comes from a
managed identity's endpoint. Container groups run for real on a Docker engine, images lie in a real registry. Bodies are
held against the published shapes of API 2023-05-01 as azure-mgmt-containerinstance knows them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import trustme
from aiohttp import web

SUBSCRIPTION = "00000000-1111-2222-3333-444444444444"
GROUP = "driftloop-tests"
LOCATION = "westeurope"
API = "2023-05-01"
IDENTITY_API = "2023-01-31"
PERMISSIONS_API = "2022-04-01"
AAD_TOKEN = "canary-of-azure-ad"
_IDENTITY = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/puller"
)
_GROUPS = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.ContainerInstance/containerGroups"
_FAULT = web.RequestKey("fault", str)
FAULTS = ("429", "409", "500", "hang", "lost", "failed", "half")


# -- the published shapes ----------------------------------------------------------------------------

# Where the API takes one of a few words, which the SDK's own models do not check: class and field of the model.
ONE_OF = {
    ("ContainerGroup", "os_type"): {"Linux", "Windows"},
    ("ContainerGroup", "restart_policy"): {"Always", "OnFailure", "Never"},
    ("ContainerGroup", "sku"): {"NotSpecified", "Standard", "Dedicated", "Confidential"},
    ("ContainerGroup", "priority"): {"Regular", "Spot"},
    ("ContainerGroupIdentity", "type"): {"SystemAssigned", "UserAssigned", "SystemAssigned, UserAssigned", "None"},
    ("IpAddress", "type"): {"Public", "Private"},
    ("IpAddress", "auto_generated_domain_name_label_scope"): {
        "Unsecure", "TenantReuse", "SubscriptionReuse", "ResourceGroupReuse", "Noreuse",
    },
    ("Port", "protocol"): {"TCP", "UDP"},
    ("ContainerPort", "protocol"): {"TCP", "UDP"},
    ("ContainerHttpGet", "scheme"): {"http", "https"},
}  # fmt: skip


def wrong_with(body: Any) -> list[str]:
    """What a container group's body has that API 2023-05-01 does not know, or lacks that it requires."""
    from azure.mgmt.containerinstance import models

    found: list[str] = []
    _check(models.ContainerGroup, body, "", found, models)
    return found


def _check(cls: Any, body: Any, where: str, found: list[str], models: Any) -> None:
    if not isinstance(body, dict):
        found.append(f"{where}: an object is needed")
        return
    known: set[str] = set()
    for name, attribute in cls._attribute_map.items():
        path = attribute["key"].split(".")
        rule = cls._validation.get(name, {}) if hasattr(cls, "_validation") else {}
        value: Any = body
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        known.add(path[0])
        place = f"{where}.{attribute['key']}"
        if value is None:
            if rule.get("required"):
                found.append(f"{place}: required")
        elif rule.get("readonly"):
            found.append(f"{place}: read-only")
        elif value not in ONE_OF.get((cls.__name__, name), (value,)):
            found.append(f"{place}: {value} is none of {', '.join(sorted(ONE_OF[cls.__name__, name]))}")
        else:
            _check_value(attribute["type"], value, place, found, models)
    nested = {
        each["key"].split(".")[1] for each in cls._attribute_map.values() if each["key"].startswith("properties.")
    }
    if nested and isinstance(body.get("properties"), dict):
        found += [f"{where}.properties.{name}: unknown" for name in body["properties"].keys() - nested]
    found += [f"{where}.{name}: unknown" for name in body.keys() - known]


def _check_value(kind: str, value: Any, place: str, found: list[str], models: Any) -> None:
    plain: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}
    if kind.startswith("["):
        if not isinstance(value, list):
            found.append(f"{place}: a list is needed")
            return
        for at, each in enumerate(value):
            _check_value(kind[1:-1], each, f"{place}[{at}]", found, models)
    elif kind.startswith("{"):
        if not isinstance(value, dict):
            found.append(f"{place}: an object is needed")
            return
        for name, each in value.items():
            _check_value(kind[1:-1], each, f"{place}[{name}]", found, models)
    elif kind in plain:
        if not isinstance(value, plain[kind]):
            found.append(f"{place}: {kind} is needed")
    elif hasattr(models, kind) and hasattr(getattr(models, kind), "_attribute_map"):
        _check(getattr(models, kind), value, place, found, models)


# -- what runs ----------------------------------------------------------------------------


class Pretended:
    """Groups without containers, for many of them."""

    def start(self, name: str, body: dict[str, Any]) -> str:
        return "127.0.0.1"

    def stop(self, name: str) -> None:
        """Nothing runs."""

    def view(self, name: str) -> dict[str, Any]:
        return {"currentState": {"state": "Running"}}

    def logs(self, name: str) -> str:
        return ""


class OnEngine:
    """A group's container on a Docker engine, each at a loopback address of its own, pulled past the login.

    registry, behind: the address that images are named by, and that of the registry behind it.
    """

    def __init__(self, engine: Any, registry: str, behind: str) -> None:
        self.engine = engine
        self.registry = registry
        self.behind = behind
        self.mark = uuid.uuid4().hex[:8]
        self.count = 0

    def _name(self, name: str) -> str:
        return f"aci-{self.mark}-{name}"

    def start(self, name: str, body: dict[str, Any]) -> str:
        self.stop(name)
        container = body["properties"]["containers"][0]
        image = container["properties"]["image"].replace(self.registry, self.behind)
        repository, _, digest = image.partition("@")
        self.engine.images.pull(repository, tag=digest)
        self.count += 1
        address = f"127.88.{int(self.mark[:2], 16)}.{self.count}"
        port = container["properties"]["ports"][0]["port"]
        memory = container["properties"]["resources"]["requests"]["memoryInGB"]
        self.engine.containers.run(
            image,
            name=self._name(name),
            detach=True,
            ports={f"{port}/tcp": (address, port)},
            mem_limit=int(memory * 2**30),
            labels={"driftloop-tests": self.mark},
        )
        return address

    def stop(self, name: str) -> None:
        import docker.errors

        try:
            self.engine.containers.get(self._name(name)).remove(force=True)
        except docker.errors.NotFound:
            return

    def view(self, name: str) -> dict[str, Any]:
        import docker.errors

        try:
            state = self.engine.containers.get(self._name(name)).attrs["State"]
        except docker.errors.NotFound:
            return {}
        if state["Running"]:
            return {"currentState": {"state": "Running"}, "restartCount": 0}
        return {"currentState": {"state": "Terminated", "exitCode": state["ExitCode"], "detailStatus": "Error"}}

    def logs(self, name: str) -> str:
        return str(self.engine.containers.get(self._name(name)).logs(tail=15).decode(errors="replace"))


# -- Azure Resource Manager ----------------------------------------------------------------------------


@dataclass
class Group:
    """One container group. pending: looks at its operation until it has ended."""

    body: dict[str, Any]
    state: str = "Pending"
    address: str | None = None
    pending: int = 1


@dataclass
class Arm:
    """The container groups. faults: what happens to the requests to come, in order; then all goes well.

    puts, early, refused: names that were put, requests before a Retry-After was over, what the API does not know.
    permissions: what whoever asks may do besides reading.
    """

    runs: Any = field(default_factory=Pretended)
    faults: list[str] = field(default_factory=list)
    retry_after: int = 1
    hang_seconds: float = 2.0
    groups: dict[str, Group] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    early: int = 0
    refused: list[str] = field(default_factory=list)
    permissions: list[dict[str, list[str]]] = field(
        default_factory=lambda: [
            {"actions": ["Microsoft.ContainerInstance/*"], "notActions": []},
            {"actions": ["Microsoft.ManagedIdentity/userAssignedIdentities/*/assign/action"], "notActions": []},
        ]
    )
    most: int = 0
    not_before: float = 0.0

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._checked])
        app.router.add_get(_GROUPS, self._list)
        app.router.add_get(_GROUPS + "/{name}", self._get)
        app.router.add_put(_GROUPS + "/{name}", self._put)
        app.router.add_delete(_GROUPS + "/{name}", self._delete)
        app.router.add_get(_GROUPS + "/{name}/containers/{container}/logs", self._logs)
        app.router.add_get("/operations/{name}", self._operation)
        usages = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.ContainerInstance/locations/{LOCATION}/usages"
        app.router.add_get(usages, self._usages)
        app.router.add_get(_IDENTITY, self._identity)
        app.router.add_get("/{scope:.+}/providers/Microsoft.Authorization/permissions", self._permissions)
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {AAD_TOKEN}":
            return _error(401, "AuthenticationFailed", "no token of ours")
        if time.monotonic() < self.not_before:
            self.early += 1
            return self._throttled()
        fault = self.faults.pop(0) if self.faults else ""
        match fault:
            case "429":
                return self._throttled()
            case "409":
                return _error(409, "Conflict", "another operation is under way")
            case "500":
                return _error(500, "InternalServerError", "something went wrong")
            case "hang":
                await asyncio.sleep(self.hang_seconds)
                return _cut_off(request)
            case "lost":
                await handler(request)
                return _cut_off(request)
        request[_FAULT] = fault
        version = IDENTITY_API if request.path == _IDENTITY else API
        if request.path.endswith("/Microsoft.Authorization/permissions"):
            version = PERMISSIONS_API
        if request.path not in ("/operations",) and request.query.get("api-version") != version:
            return _error(400, "InvalidApiVersionParameter", str(request.query.get("api-version")))
        return await handler(request)

    def _throttled(self) -> web.Response:
        self.not_before = time.monotonic() + self.retry_after
        reply = _error(429, "TooManyRequests", "slower, please")
        reply.headers["Retry-After"] = str(self.retry_after)
        return reply

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({"value": [await self._shown(name, brief=True) for name in self.groups]})

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.groups:
            return _error(404, "ResourceNotFound", f"no container group {name}")
        return web.json_response(await self._shown(name))

    async def _identity(self, _: web.Request) -> web.Response:
        return web.json_response({"id": _IDENTITY, "type": "Microsoft.ManagedIdentity/userAssignedIdentities"})

    async def _permissions(self, _: web.Request) -> web.Response:
        """Of whoever asks: roles at that scope and above, added up."""
        return web.json_response({"value": [{"actions": ["*/read"], "notActions": []}, *self.permissions]})

    async def _put(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], await request.json()
        if wrong := wrong_with(body):
            self.refused += wrong
            return _error(400, "InvalidRequestContent", "; ".join(wrong))
        known = self.groups.get(name)
        if known is not None and known.state == "Succeeded":
            self.refused.append(f"{name} was updated, which restarts its container")
        self.puts.append(name)
        group = self.groups[name] = Group(body, address=known.address if known else None)
        self.most = max(self.most, len(self.groups))
        if request.get(_FAULT) == "failed":
            group.state, group.pending = "Failed", 0
        elif request.get(_FAULT) == "half":
            group.pending = 10**6
        return self._accepted(request, name, 201 if known is None else 200, await self._shown(name))

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self.groups.pop(name, None) is None:
            return web.Response(status=204)
        await asyncio.to_thread(self.runs.stop, name)
        return web.Response(status=200)

    async def _logs(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.groups:
            return _error(404, "ResourceNotFound", name)
        return web.json_response({"content": await asyncio.to_thread(self.runs.logs, name)})

    async def _operation(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._go_on(name)
        group = self.groups.get(name)
        if group is None or group.state == "Failed":
            failed = {"status": "Failed", "error": {"code": "ContainerGroupFailed", "message": "it failed"}}
            return web.json_response(failed)
        return web.json_response({"id": name, "status": group.state, "properties": {"events": []}})

    async def _usages(self, _: web.Request) -> web.Response:
        name = {"value": "ContainerGroups", "localizedValue": "Container Groups"}
        usage = {"unit": "Count", "currentValue": len(self.groups), "limit": 100, "name": name}
        return web.json_response({"value": [usage]})

    async def _go_on(self, name: str) -> None:
        group = self.groups.get(name)
        if group is None or group.state != "Pending":
            return
        group.pending -= 1
        if group.pending <= 0:
            try:
                group.address = await asyncio.to_thread(self.runs.start, name, group.body)
                group.state = "Succeeded"
            except Exception as error:  # noqa: BLE001  whatever the engine says becomes the group's failure
                group.state = "Failed"
                self.refused.append(f"{name} does not start: {error}")

    def _accepted(self, request: web.Request, name: str, status: int, body: Any) -> web.Response:
        base = f"https://{request.host}/operations/{name}?api-version={API}"
        return web.json_response(body, status=status, headers={"azure-asyncoperation": base})

    async def _shown(self, name: str, *, brief: bool = False) -> dict[str, Any]:
        group = self.groups[name]
        shown = json.loads(json.dumps(group.body))
        shown |= {"id": f"{_GROUPS}/{name}", "name": name, "type": "Microsoft.ContainerInstance/containerGroups"}
        properties = shown["properties"]
        properties["provisioningState"] = group.state
        if group.address is not None:
            # No name of the region's can be looked up here, so the address stands in its place.
            properties["ipAddress"] |= {"ip": group.address, "fqdn": group.address}
        for login in properties.get("imageRegistryCredentials") or ():
            login.pop("password", None)
        if not brief and group.state == "Succeeded":
            view = await asyncio.to_thread(self.runs.view, name)
            properties["containers"][0]["properties"]["instanceView"] = view
            properties["instanceView"] = {"events": [], "state": "Running"}
        return shown


def _cut_off(request: web.Request) -> web.Response:
    """The client sees a connection that ends without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


# -- the login of Azure Container Registry in front of a registry ----------------------------------------------------


class Acr:
    """behind: the address of a registry without a login. Tokens are given for AAD_TOKEN only."""

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.refresh = _jwt("canary-of-the-registry-token")
        self.access = _jwt("access")
        self.exchanges = 0
        self.session: aiohttp.ClientSession

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**31)
        app.cleanup_ctx.append(self._session)
        app.router.add_post("/oauth2/exchange", self._exchange)
        app.router.add_post("/oauth2/token", self._token)
        app.router.add_get("/oauth2/token", self._token_for_docker)
        app.router.add_route("*", "/v2/{path:.*}", self._pass)
        return app

    async def _session(self, _: web.Application) -> Any:
        async with aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as self.session:
            yield

    async def _exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("grant_type") != "access_token" or form.get("access_token") != AAD_TOKEN:
            return _error(401, "UNAUTHORIZED", "no token of ours")
        self.exchanges += 1
        return web.json_response({"refresh_token": self.refresh})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("refresh_token", form.get("password")) != self.refresh:
            return _error(401, "UNAUTHORIZED", "no refresh token of ours")
        return web.json_response({"access_token": self.access})

    async def _token_for_docker(self, request: web.Request) -> web.Response:
        kind, _, login = request.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(login).decode().partition(":") if kind == "Basic" else ("", "", "")
        if password != self.refresh or user != "00000000-0000-0000-0000-000000000000":
            return _error(401, "UNAUTHORIZED", "no refresh token of ours")
        return web.json_response({"access_token": self.access, "token": self.access})

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.access}":
            path = request.match_info["path"]
            name = next((path.partition(end)[0] for end in ("/blobs/", "/manifests/", "/tags/") if end in path), "x")
            scope = f"repository:{name}:pull,push,delete"
            challenge = f'Bearer realm="https://{request.host}/oauth2/token",service="{request.host}",scope="{scope}"'
            await request.read()
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        dropped = ("host", "authorization", "transfer-encoding", "connection")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        async with self.session.request(
            request.method,
            f"http://{self.behind}{request.path_qs}",
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as upstream:
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            reply = web.StreamResponse(status=upstream.status, headers=kept)
            await reply.prepare(request)
            async for part in upstream.content.iter_chunked(2**18):
                await reply.write(part)
            await reply.write_eof()
            return reply


def _jwt(name: str) -> str:
    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return ".".join([part({"alg": "none"}), part({"jti": name, "exp": int(time.time()) + 10_800}), "signature"])


# -- all together ----------------------------------------------------------------------------


class Identity:
    """The endpoint at which a managed identity asks for its tokens. `secret` is its header."""

    secret = "canary-of-the-identity"

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/token", self._token)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        if request.headers.get("X-IDENTITY-HEADER") != self.secret:
            return web.Response(status=401)
        expires = str(int(time.time()) + 86_000)
        given = {"access_token": AAD_TOKEN, "expires_on": expires, "token_type": "Bearer"}
        return web.json_response(given | {"resource": request.query["resource"]})


@dataclass
class Azure:
    """A running fake. environment: what a worker needs to use it, by variable."""

    arm: Arm
    acr: Acr | None
    ca: Path
    endpoint: str
    registry: str | None
    environment: dict[str, str]


@contextmanager
def azure(folder: Path, *, engine: Any = None, behind: str | None = None) -> Iterator[Azure]:
    """All of it; engine, behind: where groups really run, and the registry with their images."""
    authority = trustme.CA()
    ca = folder / "azure-ca.pem"
    folder.mkdir(parents=True, exist_ok=True)
    authority.cert_pem.write_to_path(str(ca))
    server = _Servers()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    arm, identity = Arm(), Identity()
    acr = None if behind is None else Acr(behind)
    try:
        registry = None if acr is None else f"127.0.0.1:{server.start(acr.application, certificate)}"
        if engine is not None:
            assert registry is not None
            assert behind is not None
            arm.runs = OnEngine(engine, registry, behind)
        endpoint = f"https://127.0.0.1:{server.start(arm.application, certificate)}"
        tokens = f"http://127.0.0.1:{server.start(identity.application, None)}/token"
        environment = {
            "IDENTITY_ENDPOINT": tokens,
            "IDENTITY_HEADER": identity.secret,
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "DRIFTLOOP_ACI_RESOURCE_GROUP": GROUP,
            "DRIFTLOOP_ACI_LOCATION": LOCATION,
            "DRIFTLOOP_ACI_IDENTITY": _IDENTITY,
            "DRIFTLOOP_AZURE_ENDPOINT": endpoint,
            "DRIFTLOOP_AZURE_CA": str(ca),
            "DRIFTLOOP_REGISTRY_AUTH": "azure",
            "DRIFTLOOP_REGISTRY_CA": str(ca),
        }
        yield Azure(arm, acr, ca, endpoint, registry, environment)
    finally:
        for name in list(arm.groups):
            arm.runs.stop(name)
        server.stop()


class _Servers:
    """aiohttp servers in a thread of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.runners: list[web.AppRunner] = []

    def start(self, application: Callable[[], web.Application], certificate: Any) -> int:
        return asyncio.run_coroutine_threadsafe(self._start(application, certificate), self.loop).result(20)

    async def _start(self, application: Callable[[], web.Application], certificate: Any) -> int:
        import ssl

        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
        runner = web.AppRunner(application(), access_log=None)
        await runner.setup()
        self.runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, shutdown_timeout=1).start()
        return int(runner.addresses[0][1])

    def stop(self) -> None:
        async def stop() -> None:
            for runner in self.runners:
                await runner.cleanup()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
