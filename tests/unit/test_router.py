"""The stable address: requests reach whoever serves now, unchanged, and a switch costs none of them."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from deploy.router import MAX_BODY_BYTES, Router


@asynccontextmanager
async def upstream(answer):
    """A server whose every request is answered by `answer(request)`; gives its address."""
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def named(name):
    """An upstream that answers with its name."""

    async def answer(request):
        return web.Response(text=name)

    return upstream(answer)


@asynccontextmanager
async def client_of(router):
    async with TestClient(TestServer(router.application()), auto_decompress=False) as client:
        yield client


@pytest.fixture
def router(tmp_path):
    return Router(tmp_path / "route.json")


def test_a_request_arrives_as_it_was_sent_and_so_does_the_answer(router):
    """Path, query, method, body, repeated headers and compression are none of the router's business."""
    seen = {}

    async def answer(request):
        seen.update(path=request.raw_path, method=request.method, body=await request.read(), headers=request.headers)
        reply = web.Response(status=418, reason="Short", body=gzip.compress(b"tea"))
        reply.headers.update({"Content-Encoding": "gzip", "Connection": "close, x-mine", "x-mine": "1"})
        reply.headers.add("Set-Cookie", "a=1")
        reply.headers.add("Set-Cookie", "b=2")
        return reply

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address + "/", "7")
            headers = {"x-a": "1", "Connection": "x-gone", "x-gone": "1", "TE": "trailers", "User-Agent": "me"}
            path = client.make_url("/").human_repr() + "a%2Fb//%41?x=%20&x=2"
            url = aiohttp.client.URL(path, encoded=True)
            async with client.session.request("PUT", url, data=b"body", headers=headers) as reply:
                assert (reply.status, reply.reason, gzip.decompress(await reply.read())) == (418, "Short", b"tea")
                assert reply.headers.getall("Set-Cookie") == ["a=1", "b=2"]
                assert reply.headers["x-driftloop-version"] == "7"
                assert "x-mine" not in reply.headers
            assert (seen["path"], seen["method"], seen["body"]) == ("/a%2Fb//%41?x=%20&x=2", "PUT", b"body")
            assert (seen["headers"]["x-a"], seen["headers"]["User-Agent"]) == ("1", "me")
            assert seen["headers"]["Host"] == address.removeprefix("http://")
            assert not {"x-gone", "TE", "Connection"} & set(seen["headers"])

    asyncio.run(main())


def test_a_switch_moves_new_requests_and_leaves_those_under_way(router):
    """Both versions run during a rollout, so nobody needs to see an error."""
    asked, finish = asyncio.Event(), asyncio.Event()

    async def slow(request):
        asked.set()
        await finish.wait()
        return web.Response(text="old")

    async def main():
        async with upstream(slow) as old, named("new") as new, client_of(router) as client:
            router.switch(old, "7")
            under_way = asyncio.create_task(client.post("/predict", data=b"x"))
            await asked.wait()
            router.switch(new, "8")
            after = await client.post("/predict", data=b"x")
            assert (await after.text(), after.headers["x-driftloop-version"]) == ("new", "8")
            assert not under_way.done()
            finish.set()
            before = await under_way
            assert (await before.text(), before.headers["x-driftloop-version"]) == ("old", "7")

    asyncio.run(main())


def test_an_answer_is_passed_on_while_it_still_arrives(router):
    """An answer of any length needs no memory here."""
    first_seen = asyncio.Event()

    async def answer(request):
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(b"first ")
        await first_seen.wait()
        await reply.write(b"second")
        return reply

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address, "7")
            async with client.get("/") as reply:
                assert await reply.content.readany() == b"first "
                first_seen.set()
                assert await reply.read() == b"second"

    asyncio.run(main())


def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(router):
    """Half an answer that looks whole is worse than none."""

    async def answer(request):
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(b"half")
        request.transport.abort()
        return reply

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address, "7")
            with pytest.raises(aiohttp.ClientError):
                async with client.get("/") as reply:
                    await reply.read()

    asyncio.run(main())


def test_before_the_first_model_the_router_says_so(router):
    """503 with a reason: a client that waits for the first model can tell it from a fault."""

    async def main():
        async with client_of(router) as client:
            reply = await client.post("/predict", json={})
            assert (reply.status, (await reply.json())["error"]) == (503, "no model is deployed yet")
            assert (await client.get("/-/live")).status == 200
            assert (await client.get("/-/ready")).status == 503
            assert await (await client.get("/-/route")).json() == {"endpoint": None, "version": None}

    asyncio.run(main())


def test_its_own_pages_say_where_requests_go(router):
    async def main():
        async with named("old") as address, client_of(router) as client:
            router.switch(address, "7")
            assert (await client.get("/-/ready")).status == 200
            assert await (await client.get("/-/route")).json() == {"endpoint": address, "version": "7"}
            router.switch(None, None)
            assert (await client.get("/-/ready")).status == 503

    asyncio.run(main())


def test_an_upstream_that_is_gone_is_answered_with_502(tmp_path):
    router = Router(tmp_path / "route.json", patience=0.2)

    async def main():
        async with named("old") as address:
            pass
        async with client_of(router) as client:
            router.switch(address, "7")
            reply = await client.post("/predict", json={})
            assert (reply.status, reply.headers["x-driftloop-version"]) == (502, "7")
            assert "version 7" in (await reply.json())["error"]

    asyncio.run(main())


def test_a_request_that_nobody_takes_waits_for_the_version_that_comes_next(router):
    """A version that has crashed is replaced within seconds: its clients need not see that."""

    async def main():
        async with named("old") as gone:
            pass
        async with named("new") as address, client_of(router) as client:
            router.switch(gone, "7")
            asked = asyncio.create_task(client.post("/predict", json={}))
            await asyncio.sleep(0.3)
            assert not asked.done()
            router.switch(address, "8")
            reply = await asked
            assert (reply.status, reply.headers["x-driftloop-version"]) == (200, "8")

    asyncio.run(main())


def test_a_request_that_breaks_what_it_is_sent_to_is_not_sent_for_ever(router):
    """It would bring down every version that comes to its rescue."""
    seen = []

    async def answer(request):
        seen.append(request.path)
        request.transport.abort()
        return web.Response()

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address, "7")
            assert (await client.post("/predict", json={})).status == 502
            assert len(seen) == 2

    asyncio.run(main())


def test_a_request_that_gets_no_connection_in_time_is_told_so(tmp_path):
    """Behind a version that hangs, the last in the queue would wait for the sum of all that wait before it."""
    router = Router(tmp_path / "route.json", patience=0.5)
    goes_on = asyncio.Event()

    async def hangs(_):
        await goes_on.wait()
        return web.Response(text="at last")

    async def main():
        many = aiohttp.TCPConnector(limit=0)
        server = TestServer(router.application())
        async with upstream(hangs) as stuck, TestClient(server, connector=many) as client:
            router.switch(stuck, "7")
            asked = [asyncio.create_task(client.get("/version")) for _ in range(101)]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert [each.result().status for each in done] == [502]
            goes_on.set()
            assert {(await each).status for each in waiting} == {200}

    asyncio.run(main())


def test_more_requests_than_a_version_may_have_before_it_are_told_to_come_again(tmp_path):
    """Else all would wait longer than their clients do. Those of a slow version keep none from its successor."""
    router = Router(tmp_path / "route.json", held=3)
    goes_on = asyncio.Event()

    async def slow(_):
        await goes_on.wait()
        return web.Response(text="slow")

    async def main():
        async with upstream(slow) as stuck, named("new") as address, client_of(router) as client:
            router.switch(stuck, "7")
            waiting = [asyncio.create_task(client.get("/version")) for _ in range(3)]
            await asyncio.sleep(0.2)
            refused = await client.get("/version")
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert "3 requests" in (await refused.json())["error"]
            router.switch(address, "8")
            assert (await client.get("/version")).status == 200
            goes_on.set()
            assert [(await each).status for each in waiting] == [200] * 3
            router.switch(stuck, "7")
            assert (await client.get("/version")).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("switched", [False, True], ids=["to the same upstream", "to its successor"])
def test_a_request_whose_connection_died_is_sent_once_more(router, switched):
    """A stopped version closes its pooled connections at a moment that nobody can foresee."""
    bodies = []

    async def answer(request):
        bodies.append(await request.read())
        if len(bodies) == 2:
            if switched:
                router.switch(successor, "8")
            request.transport.abort()
        return web.Response(text="old")

    successor = None

    async def main():
        nonlocal successor
        async with upstream(answer) as old, named("new") as successor, client_of(router) as client:
            router.switch(old, "7")
            assert await (await client.post("/predict", data=b"one")).text() == "old"
            reply = await client.post("/predict", data=b"two")
            assert (reply.status, await reply.text()) == (200, "new" if switched else "old")
            assert bodies == ([b"one", b"two"] if switched else [b"one", b"two", b"two"])

    asyncio.run(main())


def test_a_body_over_the_cap_never_reaches_the_upstream(router):
    """With a length or in chunks; up to the cap it is the endpoint that decides."""
    sizes = []

    async def answer(request):
        sizes.append(len(await request.read()))
        return web.Response()

    async def chunks(size):
        for _ in range(size // 1024):
            yield b" " * 1024

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address, "7")
            for too_large in (b" " * (MAX_BODY_BYTES + 1), chunks(MAX_BODY_BYTES + 1024)):
                reply = await client.post("/predict", data=too_large)
                assert reply.status == 413
                assert str(MAX_BODY_BYTES) in (await reply.json())["error"]
            for fits in (b" " * MAX_BODY_BYTES, chunks(MAX_BODY_BYTES)):
                assert (await client.post("/predict", data=fits)).status == 200
        assert sizes == [MAX_BODY_BYTES] * 2

    asyncio.run(main())


@pytest.mark.parametrize("line", ["GET http://other.example/x HTTP/1.1", "GET //other.example/x HTTP/1.1"])
def test_nobody_can_choose_another_host(router, line):
    """A proxy that goes where the request line says is a way into the network behind it."""
    seen = []

    async def answer(request):
        seen.append(request.host)
        return web.Response(text="here")

    async def main():
        async with upstream(answer) as address, client_of(router) as client:
            router.switch(address, "7")
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(f"{line}\r\nHost: other.example\r\nConnection: close\r\n\r\n".encode())
            reply = await reader.read()
            writer.close()
            assert reply.endswith(b"here"), reply
            assert seen == [address.removeprefix("http://")]

    asyncio.run(main())


def test_the_route_survives_a_restart(router, tmp_path):
    """Kafka may be down when the router starts; clients should not notice."""
    router.switch("http://127.0.0.1:9", "7")
    again = Router(tmp_path / "route.json")
    assert (again.route.endpoint, again.route.version) == ("http://127.0.0.1:9", "7")
    again.switch(None, None)
    assert Router(tmp_path / "route.json").route.endpoint is None
    assert [path.name for path in tmp_path.iterdir()] == ["route.json"]


def test_a_broken_file_is_no_route_and_no_crash(tmp_path):
    for content in (b"", b"{", b"[]", b'{"endpoint": 3, "version": "7"}', b"\xff"):
        (tmp_path / "route.json").write_bytes(content)
        assert Router(tmp_path / "route.json").route.endpoint is None


def test_what_is_no_address_changes_nothing(router):
    router.switch("http://127.0.0.1:9", "7")
    for nonsense in ("", "ftp://x", "127.0.0.1:9", "http://"):
        with pytest.raises(ValueError, match=r"address|http"):
            router.switch(nonsense, "8")
    assert (router.route.endpoint, router.route.version) == ("http://127.0.0.1:9", "7")
