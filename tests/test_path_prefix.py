"""`path_prefix`: the whole server is under it on every way in, and nothing is outside of it."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
import trio
from click.testing import CliRunner
from hypercorn.config import Config
from hypercorn.trio import serve
from hypothesis import given
from hypothesis import strategies as st
from quart import Blueprint, url_for
from quart import websocket as websocket_of_quart

from repeater.cli.main import main
from repeater.config import ConfigError, CurrentSettings, load_settings
from repeater.config.endpoints import Endpoint
from repeater.front.path_prefix import PrefixedApp, targets
from repeater.publication import Publication
from repeater.serving.application import create_app
from repeater.serving.greeting import greet
from repeater.serving.server import open_server
from repeater.subscriber import open_subscriber
from tests import serving
from tests.deadlines import LOOP_ANSWERS
from tests.refusing import RefusedLines
from tests.serving import UPGRADE, Peer, connected, frame, running
from tests.websocket_ways import every_way, websocket
from tests.working import open_workers

PREFIX = "/realtime"
EVENT = b'{"channel":"news","data":1}'
WAYS = ("native", "asgi", "h2", "stock", "mounted")
"""First on its connection; behind a page on a kept connection; HTTP/2; a stock Hypercorn, by the
setting and by Hypercorn's own `root_path`."""
in_every_way = pytest.mark.parametrize("way", WAYS)


@asynccontextmanager
async def stock(**settings: Any) -> AsyncIterator[int]:
    """The application under Hypercorn's own server; its port."""
    config, done = Config(), trio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]  # Hypercorn's from here on
    config.errorlog = None
    config.root_path = settings.pop("root_path", "")
    current = CurrentSettings(load_settings(dev=True, allowed_hosts="*", **settings))
    async with trio.open_nursery() as nursery:
        server = partial(serve, create_app(settings=current), config)
        nursery.start_soon(partial(server, shutdown_trigger=done.wait))
        yield port
        done.set()


@asynccontextmanager
async def client(way: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server under the prefix."""
    with trio.fail_after(LOOP_ANSWERS):
        if way in ("stock", "mounted"):
            setting = "path_prefix" if way == "stock" else "root_path"
            async with (
                stock(**{setting: PREFIX}) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as made,
            ):
                yield made
            return
        async with running(path_prefix=PREFIX) as server:
            authority = serving.authority
            secure = way == "h2"
            verify = True if authority is None else authority.client("h2")
            scheme = "https" if secure else "http"
            # A connection for each call, where the way is the first request of a connection.
            limits = httpx.Limits(max_keepalive_connections=0 if way == "native" else 1)
            async with httpx.AsyncClient(
                base_url=f"{scheme}://localhost:{server.port}",
                http2=secure,
                verify=verify,
                limits=limits,
            ) as made:
                if way == "asgi":
                    assert (await made.get(f"{PREFIX}/openapi.json")).status_code == 200
                yield made


PATHS = (
    *(("POST", "/api/publish", 200), ("POST", "/api/stream", 200), ("POST", "/api/nothing", 404)),
    *(("GET", "/health", 200), ("GET", "/health/live", 200), ("GET", "/health/ready", 200)),
    *(("GET", "/metrics", 200), ("GET", "/", 200), ("GET", "/docs", 200), ("GET", "/console", 200)),
    *(("GET", "/console/console.js", 200), ("GET", "/openapi.json", 200), ("GET", "/nothing", 404)),
    *(("GET", "/ws", 426), ("GET", "/connection/sse", 400), ("POST", "/emulation", 400)),
    *(("OPTIONS", "/events", 204), ("GET", "/connection/uni_http_stream", 405)),
)


@in_every_way
async def test_every_path_is_under_it_and_only_there(way: str) -> None:
    """The API, health, metrics, pages and the subscribers' paths; 404 without the prefix."""
    async with client(way) as made:
        for method, path, status in PATHS:
            body = EVENT if method == "POST" else None
            inside = await made.request(method, f"{PREFIX}{path}", content=body)
            assert inside.status_code == status, path
            if path in ("/health/live", "/api/publish"):
                assert inside.http_version == ("HTTP/2" if way == "h2" else "HTTP/1.1")
            outside = await made.request(method, path, content=body)
            assert outside.status_code == 404, path


SPELLINGS = (
    *("/%72ealtime{}", "//realtime{}", "/realtime/{}", "/realtimeX{}", "/realtim{}", "/REALTIME{}"),
    *("/realtime%2f{}", "/realtime%2F{}", "/./realtime{}", "/x/../realtime{}", "/realtime/.{}"),
    *("/realtime/realtime{}", "/realtime/%2e{}", "/realtime\\{}", "{}"),
)


@in_every_way
async def test_no_other_spelling_opens_a_door(way: str) -> None:
    """A proxy's rule for `/realtime/api/` cannot be walked around."""
    async with client(way) as made:
        for spelling in SPELLINGS:
            for path in ("/api/publish", "/api/stream", "/emulation"):
                target = spelling.format(path)
                answer = await made.send(_as_written(made, "POST", target))
                assert answer.status_code == 404, target
            for path in ("/metrics", "/health", "/health/live", "/events?channel=news", "/ws"):
                target = spelling.format(path)
                answer = await made.send(_as_written(made, "GET", target))
                assert answer.status_code == 404, target
        history = await made.post(f"{PREFIX}/api/history", content=b'{"channel":"news"}')
        assert history.json()["result"]["offset"] == 0


def _as_written(made: httpx.AsyncClient, method: str, target: str) -> httpx.Request:
    """A request with exactly this target: httpx would tidy a URL up."""
    body = EVENT if method == "POST" else None
    request = made.build_request(method, "/", content=body)
    request.extensions["target"] = target.encode()
    return request


@in_every_way
async def test_the_prefix_alone_leads_to_its_page(way: str) -> None:
    """`/realtime` to `/realtime/`, from which the page's relative links work; nothing for POST."""
    async with client(way) as made:
        answer = await made.get(PREFIX)
        assert (answer.status_code, answer.headers["Location"]) == (308, f"{PREFIX}/")
        assert (await made.post(PREFIX, content=EVENT)).status_code == 404
        description = (await made.get(f"{PREFIX}/openapi.json")).json()
        assert description["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize("more", ["", "/more/of-it.all~"])
async def test_the_native_paths_stay_native(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, streams, WebSockets and the live check do not go through the ASGI server."""
    prefix = PREFIX + more

    async def hand_over(*_: object) -> None:
        raise AssertionError("handed over")

    async with running(path_prefix=prefix) as server:
        monkeypatch.setattr(server.acceptor._handover, "serve", hand_over)
        async with connected(server) as stream:
            for number in range(3):
                answer = await Peer(stream).call("POST", f"{prefix}/api/publish", EVENT)
                assert b'"result"' in answer, number
        for target in ("/events?channel=news", "/connection/uni_sse"):
            async with connected(server) as stream:
                await stream.send_all(f"GET {prefix}{target} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
                assert b" 200 " in await Peer(stream).until(b"\r\n\r\n")
        for target in ("/ws?channel=news", "/connection/websocket", "/connection/uni_websocket"):
            async with connected(server) as stream:
                await stream.send_all(UPGRADE.format(path=prefix + target, more="").encode())
                assert b" 101 " in await Peer(stream).until(b"\r\n\r\n")
        async with connected(server) as stream:
            head = f"GET {prefix}/health/live HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode())
            assert b" 200 " in await Peer(stream).rest()
        assert server.acceptor.statistics().rest.requests == 3
        await server.acceptor.wait_empty()


@every_way
@pytest.mark.parametrize("path", ["/ws?channel=news", "/connection/websocket"])
async def test_a_websocket_hears(way: str, path: str) -> None:
    """On each way in, an event comes."""
    async with running(path_prefix=PREFIX) as server:
        if way == "asgi":  # the page before it is under the prefix
            async with connected(server) as stream:
                peer = Peer(stream)
                await peer.call("GET", f"{PREFIX}/health")
                await stream.send_all(UPGRADE.format(path=PREFIX + path, more="").encode())
                assert b" 101 " in await peer.until(b"\r\n\r\n")
                await _hears(server, stream.send_all, peer.until, path)
            return
        async with websocket(server, way, PREFIX + path) as socket_:
            await _hears(server, socket_.send, socket_.until, path)


async def _hears(server: Any, send: Any, until: Any, path: str) -> None:
    if "connection" in path:
        await send(frame(b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"news"}}'))
        await until(b'"id":2')
    while not server.node.registry.clients:
        await trio.lowlevel.checkpoint()
    await server.node.publish(Publication("news", b'"heard"'))
    await until(b'"heard"')


async def test_a_later_request_of_a_connection() -> None:
    """Calls, a page, calls again: each is found under the prefix, whoever serves it."""
    async with running(path_prefix=PREFIX) as server, connected(server) as stream:
        peer = Peer(stream)
        for _ in range(2):
            assert b" 200 " in await peer.call("POST", f"{PREFIX}/api/publish", EVENT)
            assert b" 404 " in await peer.call("POST", "/api/publish", EVENT)
            assert b" 200 " in await peer.call("GET", f"{PREFIX}/health")
            assert b" 404 " in await peer.call("GET", "/health")


async def test_the_prefix_of_a_url() -> None:
    """A target in absolute form means its path (RFC 9112, section 3.2.2), with the prefix."""
    async with running(path_prefix=PREFIX) as server:
        for path, status in ((f"{PREFIX}/health", b" 200 "), ("/health", b" 404 ")):
            async with connected(server) as stream:
                assert status in await Peer(stream).call("GET", f"http://t{path}")


async def test_clients_take_a_url_with_a_path() -> None:
    """The Trio client and the command line: `http://host/realtime`, with or without a slash."""
    async with running(path_prefix=PREFIX) as server:
        for end in ("", "/"):
            url = f"http://127.0.0.1:{server.port}{PREFIX}{end}"
            async with open_subscriber(url, ["news"]) as events:
                run = partial(
                    CliRunner().invoke, main, ["publish", "news", '"from cli"', "--url", url]
                )
                result = await trio.to_thread.run_sync(run)
                assert result.exit_code == 0, result.output
                with trio.fail_after(LOOP_ANSWERS):
                    assert (await anext(events)).data == "from cli"


async def test_workers_are_under_it() -> None:
    """Each worker has the same prefix."""
    settings = load_settings(dev=True, port=0, path_prefix=PREFIX)
    with trio.fail_after(LOOP_ANSWERS):
        async with (
            open_workers(settings) as workers,
            open_subscriber(f"http://127.0.0.1:{workers.port}{PREFIX}", ["news"]) as events,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{workers.port}") as made,
        ):
            assert (await made.post("/api/publish", content=EVENT)).status_code == 404
            answer = await made.post(f"{PREFIX}/api/publish", content=EVENT)
            assert "result" in answer.json()
            assert (await anext(events)).data == 1


async def test_calls_with_the_key_are_served_to_a_full_address() -> None:
    """The check in front of the application knows calls by their paths without the prefix."""
    limits = {"connections_per_address": 1}
    settings = {"dev": False, "api_key": "k" * 16, "path_prefix": PREFIX}
    async with (
        running(limits=limits, **settings) as server,
        connected(server),
    ):
        for key, status in (("k" * 16, b" 200 "), ("wrong", b" 429 ")):
            async with connected(server) as stream:
                peer = Peer(stream)
                await peer.call("GET", f"{PREFIX}/nothing")  # the call behind it is not native
                head = f"X-API-Key: {key}\r\n"
                assert status in await peer.call("POST", f"{PREFIX}/api/publish", EVENT, head)


async def test_the_greeting_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    """What a developer copies has the prefix."""
    logging.getLogger("repeater").setLevel(logging.ERROR)
    greet(load_settings(dev=True, path_prefix=PREFIX), [Endpoint("127.0.0.1", 8000)])
    said = capfd.readouterr()
    for url in ("http://127.0.0.1:8000/realtime/api/publish", "ws://127.0.0.1:8000/realtime/ws?"):
        assert url in said.out + said.err


# ---- the log


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return RefusedLines(caplog).all()


@in_every_way
async def test_a_path_of_ours_without_the_prefix_is_one_line(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A page, or a proxy that took the prefix off; other paths, a scanner's say, leave none."""
    with caplog.at_level(logging.INFO):
        async with client(way) as made:
            for path in ("/favicon.ico", "/", "/docs", "//ws", "/w%73"):
                assert (await made.get(path)).status_code == 404
            assert lines_of(caplog) == []
            answer = await made.get("/connection/websocket")
            (line,) = lines_of(caplog)
            assert line.startswith("refused what=websocket cause=request")
            assert "'/connection/websocket' is outside of path_prefix, '/realtime'" in line
            assert "ask for '/realtime/connection/websocket'; a proxy has to pass" in line
            assert "status=404" in line
            assert "is outside of path_prefix" in answer.text  # it is in development mode
            answer = await made.post("/api/publish?api_key=secret", content=EVENT)
            assert answer.json()["error"]["code"] == 104
            assert "'/api/publish' is outside of path_prefix" in answer.json()["error"]["message"]
            assert lines_of(caplog)[1].startswith("refused what='api publish' cause=request")
            assert "secret" not in lines_of(caplog)[1]


@pytest.mark.parametrize("dev", [True, False])
@every_way
async def test_a_prefix_that_nobody_set_is_one_line(
    way: str, dev: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy passes it on. The line has the setting to add; in production the client hears 404."""
    with caplog.at_level(logging.INFO):
        async with running(dev=dev) as server, connected(server) as stream:
            peer = Peer(stream)
            if way == "asgi":
                await peer.call("GET", "/health")
            if way == "h2":
                answer = await peer.call("GET", "/realtime/events?channel=news&token=secret")
                kind = "events"
            else:
                path = "/realtime/connection/websocket?token=secret"
                await stream.send_all(UPGRADE.format(path=path, more="").encode())
                answer = await peer.until(b"\r\n\r\n")
                kind = "websocket"
    assert b" 404 " in answer
    assert (b"path_prefix" in answer) is dev
    (line,) = lines_of(caplog)
    assert line.startswith(f"refused what={kind} cause=request")
    assert "set path_prefix = '/realtime', or have the proxy take '/realtime' off" in line
    assert "secret" not in line


async def test_an_application_s_own_path_may_end_like_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its routes are found, under the prefix, and know it; nothing is noted."""
    pages = Blueprint("pages", __name__)

    @pages.get("/mine/events")
    async def events() -> str:
        return url_for("pages.events")

    @pages.websocket("/mine/ws")
    async def echo() -> None:
        await websocket_of_quart.send(f"{websocket_of_quart.path} {url_for('pages.events')}")

    with caplog.at_level(logging.INFO), trio.fail_after(LOOP_ANSWERS):
        settings = load_settings(dev=True, port=0, path_prefix=PREFIX)
        async with open_server(settings, blueprints=[pages]) as server:
            async with connected(server) as stream:
                peer = Peer(stream)
                answer = await peer.call("GET", f"{PREFIX}/mine/events")
                assert answer.endswith(f"\r\n\r\n{PREFIX}/mine/events".encode())
                assert lines_of(caplog) == []
                assert b" 404 " in await peer.call("POST", f"{PREFIX}/mine/events")
                assert len(lines_of(caplog)) == 1
            async with connected(server) as stream:
                head = UPGRADE.format(path=f"{PREFIX}/mine/ws", more="")
                await stream.send_all(head.encode())
                await Peer(stream).until(f"/mine/ws {PREFIX}/mine/events".encode())


# ---- the setting


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *(("", ""), ("/realtime", "/realtime"), ("/realtime/", "/realtime"), ("/a/b", "/a/b")),
        *(("/a.b-c_d~e/F1", "/a.b-c_d~e/F1"), ("/..a", "/..a")),
    ],
)
def test_a_prefix_is_a_path(given: str, meant: str) -> None:
    """A slash at its end means nothing."""
    assert load_settings(path_prefix=given).path_prefix == meant


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("/", "must be empty for a server at /"),
        ("realtime", "must begin with /"),
        ("https://example.com/realtime", "must begin with /"),
        ("//realtime", "single slashes"),
        ("/a//b", "single slashes"),
        ("/realtime//", "single slashes"),
        ("/real%74ime", "no escapes"),
        ("/realtime?a=b", "no query"),
        ("/realtime#a", "no query"),
        ("/réaltime", "a-z"),
        ("/real time", "a-z"),
        ("/a/../b", "must not have . or .."),
        ("/.", "must not have . or .."),
        ("/realtime\n", "a-z"),
        ("/" + "a" * 255, "at most 255"),
    ],
)
def test_what_is_no_prefix_is_refused(prefix: str, said: str) -> None:
    """At the start, in one line that names the setting."""
    with pytest.raises(ConfigError) as raised:
        load_settings(path_prefix=prefix)
    assert "path_prefix" in str(raised.value)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


# ---- the rule


_SEGMENT = st.sampled_from(["realtime", "realtimeX", "%72ealtime", "", ".", "..", "ws", "a b", "é"])


@given(st.lists(_SEGMENT, min_size=1, max_size=4).map("/".join), st.sampled_from(["", "/mount"]))
def test_a_path_is_inside_or_outside(rest: str, mount: str) -> None:
    """Inside is what begins with mount and prefix as written; the rest of it comes unchanged."""
    raw = quote(f"/{rest}", safe="/%.").encode()
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "root_path": mount}
    scope |= {"raw_path": raw, "path": unquote(raw.decode())}
    trio.run(PrefixedApp(app, PREFIX), scope, receive, send)
    whole = f"{mount}{PREFIX}".encode()
    if raw.startswith(whole + b"/"):
        (inner,) = seen
        assert whole + inner["raw_path"] == raw
        assert whole.decode() + inner["path"] == scope["path"]
        assert inner["root_path"] == whole.decode()
        assert sent == []
    else:
        assert seen == []
        assert sent[0]["status"] == (308 if raw == whole else 404)


def test_without_a_prefix_paths_are_as_written() -> None:
    """The native tables are the same as ever."""
    assert targets("", ["/ws", "/events"]) == {b"/ws", b"/events"}
    assert targets("/a/b", ["/ws"]) == {b"/a/b/ws"}
