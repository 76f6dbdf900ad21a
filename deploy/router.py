"""The stable address: a reverse proxy in front of whichever version serves now.

Requests are read whole before the upstream is asked, which their small cap allows: a slow client then holds no scoring
connection, and a request that meets a stopped upstream can be sent again to its successor. Answers are streamed.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import structlog
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

log = structlog.get_logger()

VERSION_HEADER: Final = "x-driftloop-version"
# A little above the endpoint's own cap, so that its answer is the one that a client sees.
MAX_BODY_BYTES: Final = 1024 * 1024 + 64 * 1024
CONNECT_SECONDS: Final = 5.0
# A version whose machine is busy, or that is just being replaced, is asked again for so long.
PATIENCE_SECONDS: Final = 10.0
# More requests than these would only wait longer than their clients do; each holds up to a body of the cap.
MAX_HELD: Final = 500
_CONNECTIONS: Final = 100
_BACKLOG: Final = 1024
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
SILENCE_SECONDS: Final = 60.0
# Below the 5 s after which uvicorn closes an idle connection, so that it is never the upstream that closes first.
KEEP_ALIVE_SECONDS: Final = 3.0
# As in the scoring server: a client that is still sending would not see the answer.
_DISCARD_BYTES: Final = 4 * MAX_BODY_BYTES

# RFC 9110 section 7.6.1: these are about one connection, not about the message. Expect was answered here already.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_ADDED_BY_CLIENT: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go. endpoint: base address of the upstream; None: nowhere yet."""

    endpoint: str | None
    version: str | None


class Router:
    """One route, kept in a file; `switch` moves all requests that begin after it.

    remembered: the file with the last route, so that a restarted router needs nobody to tell it.
    patience: seconds for which a version that cannot be asked is asked again. held: requests that one version may have
    before it; the next are answered with 503 at once.
    """

    def __init__(self, remembered: Path, *, patience: float = PATIENCE_SECONDS, held: int = MAX_HELD) -> None:
        self._remembered = remembered
        self._patience = patience
        self._most = held
        self._held: Counter[Route] = Counter()
        self._route = _read(remembered)
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    @property
    def route(self) -> Route:
        """Where a request that begins now is sent."""
        return self._route

    def switch(self, endpoint: str | None, version: str | None) -> None:
        """Sends every new request there; those under way finish where they are. Safe to call from any thread.

        Raises ValueError if the endpoint is no http or https address, OSError if the route cannot be remembered; the
        old route stays in force then.
        """
        if endpoint is not None:
            url = URL(endpoint)
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError(f"{endpoint!r} is not an http or https address")
            endpoint = endpoint.rstrip("/")
        route = Route(endpoint, version)
        if route != self._route:
            _write(self._remembered, route)
            self._route = route
            log.info("router.switched", endpoint=endpoint, version=version)

    def application(self) -> web.Application:
        """The server's app: `/-/live`, `/-/ready`, `/-/route` are its own, everything else is passed on."""
        app = web.Application()
        app.cleanup_ctx.append(self._sessions)
        app.router.add_get("/-/live", self._live)
        app.router.add_get("/-/ready", self._ready)
        app.router.add_get("/-/route", self._show)
        app.router.add_route("*", "/{path:.*}", self._pass)
        return app

    async def _sessions(self, _: web.Application) -> AsyncIterator[None]:
        # By version, so that one that is slow keeps none from its successor.
        pooled = aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_SECONDS)
        fresh = aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS, force_close=True)
        async with _session(pooled, self._patience) as self._pooled, _session(fresh, self._patience) as self._fresh:
            yield

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def _ready(self, _: web.Request) -> web.Response:
        if self._route.endpoint is None:
            return _problem(503, "no model is deployed yet")
        return web.json_response({"status": "ready"})

    async def _show(self, _: web.Request) -> web.Response:
        return web.json_response({"endpoint": self._route.endpoint, "version": self._route.version})

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if body is None:
            return _problem(413, f"the body may have {MAX_BODY_BYTES} bytes", {"Connection": "close"})
        deadline = asyncio.get_running_loop().time() + self._patience
        pause, cut = 0.0, False
        while (route := self._route).endpoint is not None:
            if self._held[route] >= self._most:
                said = f"version {route.version} has {self._most} requests before this one"
                return _problem(503, said, {"Retry-After": "1"} | _named(route))
            self._held[route] += 1
            try:
                # A pooled connection may be one that the upstream has just closed: the second try is made on a new one.
                session = self._fresh if pause else self._pooled
                assert session is not None
                upstream = await _ask(session, route.endpoint, request, body)
            except aiohttp.SocketTimeoutError:
                return _problem(504, f"version {route.version} did not answer in time", _named(route))
            except aiohttp.ClientError as error:
                log.warning("router.unreachable", endpoint=route.endpoint, version=route.version, error=repr(error))
                # Scoring changes nothing, so asking twice is safe; but a request that breaks what it is sent to must
                # not be sent for ever. One that found nobody to ask may be.
                asked = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
                if cut and asked:
                    break
                cut = cut or asked
                if asyncio.get_running_loop().time() + pause > deadline:
                    break
                await asyncio.sleep(pause)
                pause = min(max(_FIRST_PAUSE_S, 2 * pause), _LONGEST_PAUSE_S)
            else:
                return await _relay(request, upstream, route)
            finally:
                self._held[route] -= 1
                self._held += Counter()  # forgets versions without requests
        if route.endpoint is None:
            return _problem(503, "no model is deployed yet")
        return _problem(502, f"version {route.version} cannot be reached", {"Retry-After": "1"} | _named(route))


async def listen(application: web.Application, host: str, port: int) -> web.AppRunner:
    """The app, listening; its addresses are the runner's. Raises OSError."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    return runner


def _session(connector: aiohttp.TCPConnector, patience: float) -> aiohttp.ClientSession:
    """A client that changes nothing on the way: no cookies, no decompression, no headers of its own.

    patience: seconds for which a request waits for a connection that others use.
    """
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_ADDED_BY_CLIENT,
        timeout=aiohttp.ClientTimeout(
            total=None, connect=patience, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        ),
    )


async def _body(request: web.Request) -> bytes | None:
    """The whole body; None if it is over the cap."""
    body, size = bytearray(), 0
    async for part in request.content.iter_any():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            body += part
        elif size > _DISCARD_BYTES:
            break
    return bytes(body) if size <= MAX_BODY_BYTES else None


async def _ask(
    session: aiohttp.ClientSession, endpoint: str, request: web.Request, body: bytes
) -> aiohttp.ClientResponse:
    """The upstream's answer, its body unread. Raises aiohttp.ClientError."""
    headers = _end_to_end(request.headers)
    headers.popall("Host", None)
    headers.popall("Content-Length", None)
    # Only path and query, never the host of an absolute request line; and byte for byte, encoded as it came.
    url = URL(endpoint + request.rel_url.raw_path_qs, encoded=True)
    return await session.request(
        request.method, url, headers=headers, data=body if request.body_exists else None, allow_redirects=False
    )


async def _relay(request: web.Request, upstream: aiohttp.ClientResponse, route: Route) -> web.StreamResponse:
    async with upstream:
        headers = _end_to_end(upstream.headers)
        headers.update(_named(route))
        reply = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        try:
            await reply.prepare(request)  # a client that has left by now is no error of ours
            async for part in upstream.content.iter_any():
                await reply.write(part)
        except aiohttp.ClientError as error:
            # The status is sent already: only a broken connection still tells the client that this is not all.
            log.warning("router.cut-off", endpoint=route.endpoint, version=route.version, error=repr(error))
            if request.transport:
                request.transport.abort()
            return reply
        await reply.write_eof()
        return reply


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are not about one connection alone."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    dropped = _HOP_BY_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _named(route: Route) -> dict[str, str]:
    return {VERSION_HEADER: route.version} if route.version else {}


def _problem(status: int, error: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


def _read(remembered: Path) -> Route:
    """The route in the file; none if there is no file, or one that nobody can read."""
    try:
        return msgspec.json.decode(remembered.read_bytes(), type=Route)
    except FileNotFoundError:
        return Route(None, None)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("router.forgot", file=str(remembered), error=str(error))
        return Route(None, None)


def _write(remembered: Path, route: Route) -> None:
    """Replaces the file as one step, and for good even if the power goes."""
    remembered.parent.mkdir(parents=True, exist_ok=True)
    part = remembered.with_name(f".{remembered.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(msgspec.json.encode(route))
        file.flush()
        os.fsync(file.fileno())
    part.replace(remembered)
