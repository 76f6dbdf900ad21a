"""The page's guards: who may look, under which name, and what may be changed."""

import asyncio
import ssl

import pytest
import trustme
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from schemas.errors import UserError
from schemas.settings import Settings
from workers.health import Health
from workers.history import History
from workers.seen import Seen
from workers.web import Page, check, tls

TOKEN = "correct horse battery"


@pytest.fixture
def ask(tmp_path):
    """Ask for a path of a page with some settings: the answer's status, headers and text."""

    def asked(method, path, *, settings=None, **request):
        chosen = Settings(_env_file=None, home=tmp_path, **(settings or {}))
        history = History(tmp_path / "h.sqlite", 1)

        async def talk():
            health = Health("monitor")
            async with TestClient(TestServer(Page(chosen, Seen(), history, health).application())) as client:
                reply = await client.request(method, path, allow_redirects=False, **request)
                return reply.status, reply.headers, await reply.text()

        try:
            return asyncio.run(talk())
        finally:
            history.close()

    return asked


SECRET = {"monitor_token": SecretStr(TOKEN)}


@pytest.mark.parametrize(
    "path", ["/", "/lag", "/devices/phone-01", "/chain/abc", "/api/overview", "/metrics", "/nowhere"]
)
def test_every_answer_forbids_what_the_page_does_not_need(ask, path):
    """Should a device's name ever get past the escaping, the browser still runs nothing."""
    _, headers, _ = ask("GET", path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_name_that_is_not_ours_is_not_served(ask):
    """A web page elsewhere may point its own name at 127.0.0.1 and read what it likes (DNS rebinding)."""
    assert ask("GET", "/api/overview", headers={"Host": "evil.example"})[0] == 421
    assert ask("GET", "/api/overview", headers={"Host": "localhost:9"})[0] == 200
    named = {"monitor_names": "lag.example"}
    assert ask("GET", "/api/overview", settings=named, headers={"Host": "lag.example"})[0] == 200


def test_without_the_token_nothing_is_told(ask):
    """Only whether the process lives, which a supervisor must know."""
    for path in ("/api/overview", "/api/stream", "/metrics", "/app.js"):
        assert ask("GET", path, settings=SECRET)[0] == 401
    assert ask("GET", "/live", settings=SECRET)[0] == 200
    status, headers, _ = ask("GET", "/", settings=SECRET, headers={"Accept": "text/html"})
    assert (status, headers["Location"]) == (303, "/login")


def test_the_token_opens_for_programs_and_for_browsers(ask):
    """Prometheus sends a header; a browser keeps a cookie that no script can read."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask("GET", "/metrics", settings=SECRET, headers=bearer)[0] == 200
    status, headers, _ = ask("POST", "/login", settings=SECRET, data={"token": TOKEN})
    assert status == 303
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    sent = {"Cookie": cookie.partition(";")[0]}
    assert ask("GET", "/api/overview", settings=SECRET, headers=sent)[0] == 200


def test_with_tls_the_page_is_served_and_the_cookie_never_leaves_it(tmp_path):
    """Beyond the loopback a token in the clear is everybody's."""
    authority, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    settings = Settings(_env_file=None, home=tmp_path, monitor_tls_cert=cert, monitor_tls_key=key, **SECRET)
    history, trusting = History(tmp_path / "h.sqlite", 1), ssl.create_default_context()
    authority.configure_trust(trusting)

    async def talk():
        server = TestServer(Page(settings, Seen(), history, Health("monitor")).application(), scheme="https")
        await server.start_server(ssl=tls(settings))
        async with TestClient(server) as client:
            return await client.post("/login", data={"token": TOKEN}, allow_redirects=False, ssl=trusting)

    try:
        reply = asyncio.run(talk())
    finally:
        history.close()
    assert reply.status == 303
    assert "Secure" in reply.headers["Set-Cookie"]


@pytest.mark.parametrize("token", ["", "wrong", "nötig"])
def test_a_wrong_token_opens_nothing(ask, token):
    """Nor does one that is not ASCII end in an error of ours."""
    assert ask("POST", "/login", settings=SECRET, data={"token": token})[0] == 401
    header = {"Authorization": f"Bearer {token}"}
    assert ask("GET", "/metrics", settings=SECRET, headers=header)[0] == 401


def test_no_get_changes_anything(ask):
    """A link or an image tag must not be able to act."""
    assert ask("GET", "/api/dead-letters/replay")[0] == 405


def test_the_page_is_read_only_unless_allowed(ask):
    """Whoever may look must not by that alone be able to send records."""
    assert ask("POST", "/api/dead-letters/replay", json={"names": ["a/0/0"]})[0] == 403


def test_another_page_cannot_act_through_the_browser(ask):
    """Its form would carry the cookie."""
    allowed = {"monitor_actions": True}
    path = "/api/dead-letters/replay"
    assert ask("POST", path, settings=allowed, json={"names": []}, headers={"Origin": "https://evil.example"})[0] == 403
    assert ask("POST", path, settings=allowed, data="names=a")[0] == 415
    assert ask("POST", path, settings=allowed, json={"names": "all"})[0] == 400


def test_a_body_is_capped(ask):
    """Nobody has a megabyte to say here."""
    allowed = {"monitor_actions": True}
    assert ask("POST", "/api/dead-letters/replay", settings=allowed, json={"names": ["x" * 200_000]})[0] == 413


@pytest.mark.parametrize(
    "path", ["/api/history?seconds=-1", "/api/history?seconds=x", "/api/events?limit=nan", "/api/events/zz"]
)
def test_what_is_not_understood_is_json_with_a_reason(ask, path):
    """Never a stack trace."""
    status, headers, text = ask("GET", path)
    assert status in (400, 404)
    assert headers["Content-Type"].startswith("application/json")
    assert "error" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"monitor_host": "0.0.0.0"}, "set a token"),
        ({"monitor_host": "0.0.0.0", "monitor_plain": True}, "set a token"),
        ({"monitor_host": "0.0.0.0", **SECRET}, "TLS"),
        ({"monitor_token": SecretStr("short")}, "16"),
        ({"monitor_tls_cert": "a.pem"}, "both"),
    ],
)
def test_a_page_that_would_be_open_to_strangers_does_not_start(settings, said):
    """The default is the loopback; more takes a token and TLS."""
    with pytest.raises(UserError, match=said):
        check(Settings(_env_file=None, **settings))


def test_the_page_is_light(ask):
    """Under 200 kB all in all, plots included, so that it opens over a bad line."""
    total = 0
    for name in (
        "index.html",
        "style.css",
        "app.js",
        "dom.js",
        "overview.js",
        "lag.js",
        "devices.js",
        "models.js",
        "chain.js",
        "letters.js",
        "charts.js",
        "uPlot.js",
        "uPlot.css",
        "favicon.svg",
    ):
        status, headers, _ = ask(
            "GET", "/" if name == "index.html" else f"/{name}", headers={"Accept-Encoding": "gzip"}
        )
        assert status == 200, name
        total += int(headers["Content-Length"])
    assert total < 200_000
    print(f"the page weighs {total} bytes")
