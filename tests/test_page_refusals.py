"""Why a page or a host is refused: the words for each mistake that people make, on each way in."""

from __future__ import annotations

from typing import Any

import pytest

from repeater.access.origins import LOOPBACK_HOSTS, LOOPBACK_ORIGINS
from repeater.access.page_refusals import Asked, why_foreign, why_other_host
from repeater.front.reasons import EXPLANATION
from tests.knocking import (
    PATHS,
    UPGRADE,
    WAYS,
    ask,
    every_kind,
    every_way,
    guarded,
    knocking,
    status_of,
)
from tests.knocking import refused as ask_stream
from tests.refusing import RefusedLines
from tests.serving import peer, running

KEEP = "have the proxy keep Host"


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "text", "mend"),
    [
        (
            "http://localhost:3000",
            "127.0.0.1:3000",
            (),
            "(which is empty), and not our own (Host is '127.0.0.1:3000'): "
            "to a browser http://localhost:3000 and http://127.0.0.1:3000 are two origins",
            "open the page as http://127.0.0.1:3000, or add 'http://localhost:3000' to allowed_",
        ),
        (
            "http://localhost:3000",
            "rt.example.com",
            ("http://127.0.0.1:3000",),
            "http://localhost:3000 and http://127.0.0.1:3000 are two origins",
            "open the page as http://127.0.0.1:3000",
        ),
        (
            "http://localhost:3000",
            "localhost:8000",
            ("http://127.0.0.1:3000",),
            "http://localhost:3000 and http://127.0.0.1:3000 are two origins",
            "open the page as http://127.0.0.1:3000",
        ),
        (
            "http://[::1]:3000",
            "rt.example.com",
            ("http://localhost:*",),
            "http://[::1]:3000 and http://localhost:3000 are two origins",
            "open the page as http://localhost:3000",
        ),
        (
            "http://app.example.com",
            "rt.example.com",
            ("https://other.example", "https://app.example.com"),
            "'https://app.example.com' has another scheme",
            "open the page by https, or add 'http://app.example.com' to allowed_origins",
        ),
        (
            "https://app.example.com:8443",
            "rt.example.com",
            ("https://app.example.com",),
            "'https://app.example.com' has the port 443",
            "add 'https://app.example.com:8443' to allowed_origins",
        ),
        (
            "http://localhost:5173",
            "rt.example.com",
            ("http://localhost",),
            "'http://localhost' has the port 80",
            "add 'http://localhost:5173'",
        ),
        (
            "http://localhost:3000",
            "localhost:8000",
            (),
            "another port is another origin",
            "add 'http://localhost:3000'",
        ),
        (
            "https://example.com",
            "rt.example.com",
            ("https://*.example.com",),
            "'https://*.example.com' does not name example.com itself",
            "add 'https://example.com'",
        ),
        (
            "https://www.example.com",
            "rt.example.com",
            ("https://example.com",),
            "'https://example.com' is another host",
            "add 'https://www.example.com'",
        ),
        (
            "null",
            "rt.example.com",
            LOOPBACK_ORIGINS,
            "(pages of this machine, in development mode): a file (file://), a sandboxed frame",
            "serve the page by http://, or add 'null' to allowed_origins",
        ),
        (
            "https://evil.test",
            "localhost",
            (*LOOPBACK_ORIGINS, *(f"https://{name}.test" for name in "abcdefg")),
            "(pages of this machine, in development mode; "
            "https://a.test, https://b.test, https://c.test, https://d.test, https://e.test "
            "and 2 more), and not our own (Host is 'localhost')",
            "add 'https://evil.test'",
        ),
        (
            "example.com",
            "a.test",
            (),
            "'example.com' is not the origin of a page",
            "an origin is a scheme",
        ),
        (None, "a.test", (), "its browser names no origin", "use fetch, EventSource"),
        ("https://a.test", None, (), "(Host is '')", "add 'https://a.test'"),
    ],
)
def test_why_a_page_is_foreign(
    origin: str | None, host: str | None, allowed: tuple[str, ...], text: str, mend: str
) -> None:
    """The mistake in words, and what would be right."""
    why = why_foreign(Asked(origin=origin, host=host), allowed)
    assert why.cause == "origin"
    assert text in why.text
    assert why.mend.startswith(mend)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            Asked(origin="https://a.test", host="127.0.0.1:8000", first_host="a.test"),
            "a proxy has changed Host from 'a.test' to '127.0.0.1:8000'",
        ),
        (
            Asked(origin="https://a.test", host="127.0.0.1:8000", proxied=True),
            "a proxy may have changed Host",
        ),
        (
            Asked(origin="https://a.test", host="a.test:80", proxied=True),
            "another port is another origin",
        ),
    ],
)
def test_a_proxy_that_changes_the_host(asked: Asked, text: str) -> None:
    """It is named, with the line of nginx that mends it."""
    why = why_foreign(asked, ())
    assert text in why.text
    assert why.mend.startswith(KEEP)
    assert why.mend.endswith(", or add 'https://a.test' to allowed_origins")


def test_a_proxy_that_asks_for_another_host() -> None:
    """What the page asked for is not its own host either: the proxy is not the mistake."""
    asked = Asked(origin="https://a.test", host="127.0.0.1", first_host="b.test", proxied=True)
    assert why_foreign(asked, ()).mend == "add 'https://a.test' to allowed_origins"


@pytest.mark.parametrize(
    ("asked", "allowed", "text", "mend"),
    [
        (
            Asked(origin=None, host="pc.lan:8000"),
            LOOPBACK_HOSTS,
            "Host 'pc.lan:8000' is not in allowed_hosts (localhost, 127.0.0.1, ::1: this machine,"
            " in development mode)",
            "add 'pc.lan' to allowed_hosts",
        ),
        (
            Asked(origin=None, host="127.0.0.1:8000", first_host="rt.test"),
            ("rt.test",),
            "a proxy has changed Host from 'rt.test' to '127.0.0.1:8000'",
            f"{KEEP} (nginx: proxy_set_header Host $http_host), or add '127.0.0.1'",
        ),
        (Asked(origin=None, host=None), ("a",), "names no host", "send the header Host once"),
        (
            Asked(origin=None, host="a", repeated=True),
            ("a",),
            "names two hosts",
            "send the header Host once",
        ),
        (Asked(origin=None, host="a b"), ("a",), "'a b' is not the name of a host", ""),
    ],
)
def test_why_another_host(asked: Asked, allowed: tuple[str, ...], text: str, mend: str) -> None:
    """The host that came, the hosts that are ours, and what to change."""
    why = why_other_host(asked, allowed)
    assert why.cause == "host"
    assert text in why.text
    assert why.mend.startswith(mend)


def test_a_long_text_of_a_stranger_is_cut() -> None:
    """Nobody fills the log with one header, or ends a line by it."""
    why = why_foreign(Asked(origin="https://a.test/\n" + "x" * 9_000, host="a" * 9_000), ())
    assert len(str(why)) < 1_000
    assert "\n" not in str(why)


@every_way
@every_kind
async def test_a_foreign_page_is_one_line(way: str, kind: str, refused: RefusedLines) -> None:
    """On each way in, with the status, and with where the page's request came from."""
    async with guarded(allowed_origins="https://app.test") as server:
        headers = {"Origin": "https://app.test:8443"}
        assert await status_of(server, way, kind, "token=ann", **headers) == 403
        assert server.node.refusals.counts == {"origin": 1}
    line = refused.one()
    for part in (
        f"what={'websocket' if kind == 'websocket' else 'events'}",
        "cause=origin",
        "the page's origin 'https://app.test:8443' is not in allowed_origins (https://app.test)",
        "'https://app.test' has the port 443",
        "mend=\"add 'https://app.test:8443' to allowed_origins\"",
        "status=403",
        "address=127.0.0.1",
    ):
        assert part in line
    assert "ann" not in line


@every_way
@every_kind
async def test_another_host_is_one_line(way: str, kind: str, refused: RefusedLines) -> None:
    """Behind the ASGI server `web/pages.py` says it, natively `admit`; only one of them."""
    async with guarded(allowed_hosts="rt.test, localhost") as server:
        assert await status_of(server, way, kind, "token=ann") == 421
        assert server.node.refusals.counts == {"host": 1}
    line = refused.one()
    assert "the request's Host 'test' is not in allowed_hosts (rt.test, localhost)" in line
    assert "mend=\"add 'test' to allowed_hosts\"" in line
    assert f"what={'websocket' if kind == 'websocket' else 'events'}" in line


@pytest.mark.parametrize("target", ["/api/publish", "/health", "/health/live", "/console"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_host_of_other_paths(target: str, method: str, refused: RefusedLines) -> None:
    """The native paths hand such a request over, and it is noted once, where it is answered."""
    async with running(allowed_hosts=()) as server, peer(server) as client:
        body = b'{"channel":"news","data":1}' if method == "POST" else b""
        assert (await ask(client, target, method, body, Host="pc.lan:8000"))[0] == 421
        assert server.node.refusals.counts == {"host": 1}
    line = refused.one()
    assert "what=request cause=host why=\"the request's Host 'pc.lan:8000'" in line
    assert f"status=421 path={target}" in line


async def test_a_page_that_calls_the_api_in_development_mode(refused: RefusedLines) -> None:
    """Its origin is named as that of a page that subscribes."""
    async with running() as server, peer(server) as client:
        headers = {"Origin": "https://evil.test"}
        body = b'{"channel":"news","data":1}'
        assert (await ask(client, "/api/publish", "POST", body, **headers))[0] == 403
    line = refused.one()
    assert "cause=origin" in line
    assert "'https://evil.test'" in line


@pytest.mark.parametrize("way", WAYS)
async def test_development_mode_tells_a_page_s_developer(way: str, refused: RefusedLines) -> None:
    """In the body, and in a header, which a browser's network tab shows to nobody but people."""
    async with running() as server:
        code, head, body = await ask_stream(
            server, way, "/events?channel=news", Origin="https://evil.test"
        )
    assert code == 403
    assert b"the page's origin 'https://evil.test' is not in allowed_origins" in body
    assert f"{EXPLANATION.lower()}: the page's origin 'https://evil.test'".encode() in head
    assert b"access-control-allow-origin" not in head, "no page may read it"
    assert "cause=origin" in refused.one()


@pytest.mark.parametrize("way", WAYS)
async def test_production_tells_nothing(way: str) -> None:
    """A stranger learns the status, and none of the settings."""
    async with guarded(allowed_origins="https://app.test") as server:
        code, head, body = await ask_stream(
            server, way, "/events?channel=news", Origin="https://evil.test"
        )
    assert (code, body) == (403, b"Forbidden\n")
    assert b"app.test" not in head
    assert EXPLANATION.lower().encode() not in head


@every_kind
async def test_a_preflight_of_a_foreign_page(kind: str, refused: RefusedLines) -> None:
    """It is refused as its request would be, once."""
    async with running() as server, peer(server) as client:
        headers = {"Origin": "https://evil.test", "Access-Control-Request-Method": "GET"}
        named: Any = {**(UPGRADE if kind == "websocket" else {}), **headers}
        method = "GET" if kind == "websocket" else "OPTIONS"
        assert (await ask(client, PATHS[kind], method, **named))[0] == 403
    assert "cause=origin" in refused.one()


async def test_an_allowed_page_leaves_no_line(refused: RefusedLines) -> None:
    """Nor does its preflight: it is no refusal."""
    async with running() as server:
        async with knocking(server, "native", "stream", Origin="http://localhost:3000") as status:
            assert status == 200
        async with peer(server) as client:
            headers: Any = {"Origin": "http://localhost:3000"}
            assert (await ask(client, "/events", "OPTIONS", **headers))[0] == 204
        assert not server.node.refusals.counts
    assert refused.all() == []
