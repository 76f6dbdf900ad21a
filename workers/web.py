"""The monitor's page and `/api` over HTTP: static files of ours, uPlot from its wheel, JSON, and server-sent events.

What a browser may do here is narrow on purpose: nothing from elsewhere is loaded, nothing is changed by a GET, and
whoever asks under a name that is not ours (DNS rebinding) or without the token is turned away.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import mimetypes
import ssl
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import structlog
from aiohttp import web

from schemas.errors import Retry, Stop, UserError
from schemas.settings import Settings
from streams.letters import plan, read_letters
from workers import views
from workers.exposition import CONTENT_TYPE, exposition
from workers.health import Health
from workers.history import History
from workers.loop_metrics import samples
from workers.seen import Json, Seen

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
TOKEN_LETTERS: Final = 16
_COOKIE: Final = "driftloop"
_COOKIE_S: Final = 30 * 24 * 3600
_BODY_BYTES: Final = 64 * 1024
_STREAM_S: Final = 15.0
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# Paths of the page's views: each is the same document, which shows what its address says.
_VIEWS: Final = ("/", "/lag", "/devices", "/devices/{device}", "/models", "/chain", "/chain/{id}", "/letters")
_OPEN: Final = ("/live", "/ready", "/login", "/style.css", "/favicon.svg")


def check(settings: Settings) -> None:
    """Raises UserError where the page would be open to strangers."""
    secret = settings.monitor_token
    token = secret.get_secret_value() if secret else ""
    if token and len(token) < TOKEN_LETTERS:
        raise UserError(f"DRIFTLOOP_MONITOR_TOKEN: at least {TOKEN_LETTERS} letters")
    if (settings.monitor_tls_cert is None) != (settings.monitor_tls_key is None):
        raise UserError("DRIFTLOOP_MONITOR_TLS_CERT and DRIFTLOOP_MONITOR_TLS_KEY: set both or neither")
    if settings.monitor_host in LOOPBACK:
        return
    if not token:
        raise UserError(f"DRIFTLOOP_MONITOR_HOST={settings.monitor_host}: others could look in; set a token as well")
    if settings.monitor_tls_cert is None and not settings.monitor_plain:
        raise UserError(
            f"DRIFTLOOP_MONITOR_HOST={settings.monitor_host}: the token would travel in the clear; set "
            "DRIFTLOOP_MONITOR_TLS_CERT and _KEY, or DRIFTLOOP_MONITOR_PLAIN=true behind a proxy that has TLS"
        )


def tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS of the page, if it has any. Raises UserError where the files are none."""
    if settings.monitor_tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.monitor_tls_cert, settings.monitor_tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"DRIFTLOOP_MONITOR_TLS_CERT={settings.monitor_tls_cert}: {error}") from error
    return context


class Page:
    """Everything that is served."""

    def __init__(self, settings: Settings, seen: Seen, history: History, health: Health) -> None:
        self.settings = settings
        self.seen = seen
        self.history = history
        self.health = health
        secret = settings.monitor_token
        self.token = secret.get_secret_value() if secret else None
        self.names = {*LOOPBACK, settings.monitor_host.lower()}
        self.names |= {name.strip().lower() for name in settings.monitor_names.split(",") if name.strip()}
        self.assets = _assets()
        self.news = asyncio.Event()
        self.overview: tuple[float, str] = (float("-inf"), "{}")

    def application(self) -> web.Application:
        """The application, its guards outermost."""
        guards = [_answer_errors, self._secure, self._authorise]
        app = web.Application(middlewares=guards, client_max_size=_BODY_BYTES)
        for path in _VIEWS:
            app.router.add_get(path, self._asset("index.html"))
        for name in self.assets:
            app.router.add_get(f"/{name}", self._asset(name))
        get = app.router.add_get
        get("/live", self._live)
        get("/ready", self._ready)
        get("/metrics", self._metrics)
        get("/api/topology", self._json(lambda _: views.topology(self.settings)))
        get("/api/overview", self._json(lambda _: views.overview(self.seen, self.settings)))
        get("/api/lag", self._json(lambda _: views.lag(self.seen)))
        get("/api/history", self._json(self._history))
        get("/api/devices", self._json(lambda _: views.devices(self.seen)))
        get("/api/devices/{device}", self._json(lambda r: views.device(self.seen, r.match_info["device"])))
        get("/api/models", self._json(lambda _: views.models(self.seen, self.settings)))
        get("/api/models/{version}/confusion", self._confusion)
        get("/api/events", self._json(self._events))
        get("/api/events/{id}", self._json(self._chain))
        get("/api/dead-letters", self._json(self._letters))
        get("/api/stream", self._stream)
        app.router.add_post("/api/dead-letters/replay", self._replay)
        app.router.add_get("/login", self._login_form)
        app.router.add_post("/login", self._login)
        return app

    # Guards

    @web.middleware
    async def _secure(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _host(request.host)
        if name not in self.names:
            said = f"not served under the name {name}; DRIFTLOOP_MONITOR_NAMES names others"
            return _with_headers(web.json_response({"error": said}, status=421))
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("Origin")
            if origin is not None and origin.partition("://")[2] != request.host:
                return _with_headers(web.json_response({"error": "asked from another page"}, status=403))
        response = await handler(request)
        return response if response.prepared else _with_headers(response)

    @web.middleware
    async def _authorise(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.token is None or request.path in _OPEN or self._knows_token(request):
            return await handler(request)
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(status=303, headers={"Location": "/login"})
        return web.json_response({"error": "give the token: Authorization: Bearer …"}, status=401)

    def _knows_token(self, request: web.Request) -> bool:
        assert self.token is not None
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode()):
            return True
        return hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), self._cookie().encode())

    def _cookie(self) -> str:
        """What the browser keeps instead of the token."""
        assert self.token is not None
        return hmac.new(self.token.encode(), b"driftloop monitor", hashlib.sha256).hexdigest()

    async def _login_form(self, request: web.Request) -> web.Response:
        return self._form(request, "")

    def _form(self, request: web.Request, said: str) -> web.Response:
        text = _text("login.html").replace("<!-- said -->", said)
        return web.Response(text=text, content_type="text/html", status=401 if said else 200)

    async def _login(self, request: web.Request) -> web.Response:
        given = str((await request.post()).get("token", ""))
        if self.token is None or not hmac.compare_digest(given.encode(), self.token.encode()):
            await asyncio.sleep(1)  # guessing takes its time
            return self._form(request, "That is not the token.")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            _COOKIE, self._cookie(), max_age=_COOKIE_S, httponly=True, samesite="Strict", secure=request.secure
        )
        return response

    # Files

    def _asset(self, name: str) -> Handler:
        async def serve(request: web.Request) -> web.Response:
            plain, packed, tag, kind = self.assets[name]
            headers = {"ETag": tag, "Content-Type": kind, "Vary": "Accept-Encoding"}
            if request.headers.get("If-None-Match") == tag:
                return web.Response(status=304, headers=headers)
            if "gzip" in request.headers.get("Accept-Encoding", ""):
                return web.Response(body=packed, headers={**headers, "Content-Encoding": "gzip"})
            return web.Response(body=plain, headers=headers)

        return serve

    # Facts

    def _json(self, view: Callable[[web.Request], Any]) -> Handler:
        async def serve(request: web.Request) -> web.Response:
            text = await asyncio.to_thread(lambda: json.dumps(view(request), allow_nan=False, default=str))
            response = web.Response(text=text, content_type="application/json")
            response.enable_compression()
            return response

        return serve

    async def _live(self, _: web.Request) -> web.Response:
        return self._probe(self.health.live)

    async def _ready(self, _: web.Request) -> web.Response:
        return self._probe(self.health.can_work)

    def _probe(self, good: bool) -> web.Response:
        said = {"process": self.health.name, "doing": self.health.doing, "ok": good}
        return web.json_response(said, status=200 if good else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(lambda: exposition(samples(self.seen)))
        response = web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
        response.enable_compression()
        return response

    def _history(self, request: web.Request) -> Any:
        """Series of a group over the last `seconds`: lag, seconds behind, rates out and in; and of every topic."""
        seconds = min(_number(request, "seconds", 900), self.settings.monitor_history_days * 86400)
        end = time.time()
        names = [name for name in request.query.getall("name", [])[:40] if len(name) < 400]
        return {
            "start": end - seconds,
            "end": end,
            "series": {name: self.history.read(name, end - seconds, end) for name in names},
        }

    def _chain(self, request: web.Request) -> Any:
        chain = self.seen.chain
        return views.chain(chain, chain.find(request.match_info["id"], self.settings.model))

    def _events(self, request: web.Request) -> Any:
        limit = int(_number(request, "limit", 100, most=1000))
        topic = request.query.get("topic") or None
        return views.events(self.seen, topic=topic, text=request.query.get("q", ""), limit=limit)

    def _letters(self, request: web.Request) -> Any:
        return views.letters(
            self.seen,
            topic=request.query.get("topic") or None,
            reject_class=request.query.get("class") or None,
            limit=int(_number(request, "limit", 50, most=300)),
        )

    async def _confusion(self, request: web.Request) -> web.Response:
        """How a version's winner named the held-out windows, as MLflow keeps it; null where it does not."""
        version, uri = request.match_info["version"], self.settings.mlflow_tracking_uri or ""
        known = views.models(self.seen, self.settings)["versions"]
        run = next((each["data"]["run_id"] for each in known if each["data"]["version"] == version), None)
        if run is None or not uri.startswith("http"):
            return web.json_response(None)
        url = f"{uri.rstrip('/')}/get-artifact?path=confusion.json&run_uuid={quote(run, safe='')}"
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
                reply = await client.get(url)
                found = reply.json() if reply.is_success else None
        except (httpx.HTTPError, ValueError):
            found = None
        return web.json_response(found if isinstance(found, dict) else None)

    # News

    def tell(self) -> None:
        """Something has changed; called in the loop's thread."""
        self.news.set()
        self.news = asyncio.Event()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the overview whenever something has changed, a comment now and then when nothing has."""
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n")
        sent = ""
        while not request.app.get(STOPPING, asyncio.Event()).is_set():
            news = self.news
            text = await asyncio.to_thread(self._now)
            try:
                if text != sent:
                    await response.write(f"event: overview\ndata: {text}\n\n".encode())
                    sent = text
                else:
                    await response.write(b": still here\n\n")
            except ConnectionError:
                break
            try:
                await asyncio.wait_for(news.wait(), _STREAM_S)
                await asyncio.sleep(0.3)  # several at once are one piece of news
            except TimeoutError:
                continue
        return response

    def _now(self) -> str:
        """The overview as JSON, made at most twice a second however many look."""
        made, text = self.overview
        if time.monotonic() - made > 0.5:
            text = json.dumps(views.overview(self.seen, self.settings), allow_nan=False, default=str)
            self.overview = (time.monotonic(), text)
        return text

    # Actions

    async def _replay(self, request: web.Request) -> web.Response:
        """Send dead letters again: `{"names": [...], "dry": true}`. Only with DRIFTLOOP_MONITOR_ACTIONS."""
        if not self.settings.monitor_actions:
            return web.json_response({"error": "this page is read-only; see --allow-actions"}, status=403)
        if request.content_type != "application/json":
            return web.json_response({"error": "send JSON"}, status=415)
        asked = await request.json()
        names = asked.get("names") if isinstance(asked, dict) else None
        if not isinstance(names, list) or not 0 < len(names) <= 100 or not all(isinstance(each, str) for each in names):
            return web.json_response({"error": "names: a list of 1 to 100 names of letters"}, status=400)
        return web.json_response(await asyncio.to_thread(self._replayed, set(names), bool(asked.get("dry", True))))

    def _replayed(self, names: set[str], dry: bool) -> Json:
        from streams.replay_letters import replay, replayed

        places: dict[tuple[str, int], int] = {}
        for name in names:
            topic, number, offset = name.rsplit("/", 2)
            places[topic, int(number)] = min(places.get((topic, int(number)), 2**62), int(offset))
        found = (each for each in read_letters(self.settings, newest=0, places=places) if each is not None)
        chosen = plan([each for each in found if each.name in names], replayed(self.settings), most=100)
        sent = 0 if dry else replay(self.settings, chosen.chosen, rate=50)
        log.info("letters.replayed", sent=sent, dry=dry)
        return {"would": len(chosen.chosen), "sent": sent, "passed_over": dict(chosen.passed_over), "dry": dry}


STOPPING: Final = web.AppKey("stopping", asyncio.Event)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What goes wrong is JSON with a reason; never a stack trace."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _with_headers(web.json_response({"error": error.reason}, status=error.status))
    except UserError as error:
        return _with_headers(web.json_response({"error": str(error)}, status=404))
    except (Retry, Stop) as error:
        return _with_headers(web.json_response({"error": str(error)}, status=503))
    except (ValueError, KeyError) as error:
        return _with_headers(web.json_response({"error": f"not understood: {error}"}, status=400))


def _with_headers(response: web.StreamResponse) -> web.StreamResponse:
    response.headers.update(_HEADERS)
    return response


def _host(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _number(request: web.Request, name: str, default: float, most: float = float("inf")) -> float:
    value = float(request.query.get(name, default))
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive")
    return min(value, most)


def _text(name: str) -> str:
    return (files("workers") / "page" / name).read_text(encoding="utf-8")


def _assets() -> dict[str, tuple[bytes, bytes, str, str]]:
    """Name → content, the same packed, tag, type: our page's files, and uPlot's from its wheel."""
    found = {}
    ours = [each for each in (files("workers") / "page").iterdir() if each.name != "login.html"]
    sources: list[tuple[str, Any]] = [(each.name, each) for each in ours]
    wheel = distribution("uplot-python")  # importing it would import IPython
    for name, path in (("uPlot.js", "uplot/static/uPlot.iife.js"), ("uPlot.css", "uplot/static/uPlot.min.css")):
        sources.append((name, Path(str(wheel.locate_file(path)))))
    for name, path in sources:
        content = path.read_bytes()
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if kind.startswith("text/") or kind.endswith("javascript"):
            kind += "; charset=utf-8"
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[name] = (content, gzip.compress(content, 9, mtime=0), tag, kind)
    return found
