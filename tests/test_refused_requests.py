"""What is refused before there is a client, on each way in: one line each, with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from repeater.access.grants import Denial
from tests.certificates import Authority
from tests.knocking import UPGRADE, ask, every_kind, every_way, guarded, knocking, status_of
from tests.refusing import RefusedLines
from tests.serving import connected, peer, running

NO_DEFAULT = {"default_channel": ""}
MANY = "&".join(f"channel={number}" for number in range(130))

REFUSED = [
    ("", {}, 401, "credentials", "no token, and anonymous clients may not subscribe"),
    ("token=guest", {}, 401, "credentials", "the token names no user"),
    ("token=wrong", {}, 401, "token", "no"),
    ("token=over", {}, 401, "token_expired", "the token has expired"),
    ("token=later", {}, 503, "callback", "keys"),
    ("token=ann", NO_DEFAULT, 400, "request", "add ?channel=NAME to the address"),
    ("token=ann&channel=chat:1", {}, 400, "namespace", "there is no namespace 'chat'"),
    ("token=ann&channel=chat:1", {}, 400, "namespace", "channel=chat:1 user=ann"),
    ("token=ann&channel=$a", {}, 403, "permission", "the channel is private"),
    ("token=ann&channel=$a", {}, 403, "permission", "channel=$a user=ann"),
    (f"token=ann&{MANY}", {}, 400, "limit", "see the setting channel_limit"),
]


@every_way
@every_kind
@pytest.mark.parametrize(
    ("query", "settings", "status", "cause", "text"), REFUSED, ids=lambda one: str(one)[:24]
)
async def test_a_plain_subscriber(
    way: str,
    kind: str,
    query: str,
    settings: dict[str, Any],
    status: int,
    cause: str,
    text: str,
    refused: RefusedLines,
) -> None:
    """Token, channels and limits: the line says which, and production's answer does not."""
    async with guarded(**settings) as server:
        assert await status_of(server, way, kind, query) == status
        assert server.node.refusals.counts == {cause: 1}
    line = refused.one()
    assert line.startswith(f"refused what={'websocket' if kind == 'websocket' else 'events'} ")
    assert f"cause={cause} " in line
    assert text in line
    assert f"status={status}" in line
    assert "address=127.0.0.1" in line
    assert not query or query.partition("&")[0] not in line


@every_way
@every_kind
async def test_a_token_that_is_taken_for_none(way: str, kind: str, refused: RefusedLines) -> None:
    """Development mode lets its client in, and says what is wrong with the token."""
    async with guarded(dev=True) as server:
        assert await status_of(server, way, kind, "token=wrong") == 200
        assert server.node.refusals.counts == {"token": 1}
    assert "cause=token why='the token is invalid: no'" in refused.one()


async def test_protobuf_where_only_json_is_spoken(refused: RefusedLines) -> None:
    """The SDK is told to stay away (3506), and the line what to use."""
    async with running() as server, peer(server) as client:
        head = "Content-Type: application/octet-stream\r\n"
        answer = await client.call("POST", "/connection/uni_http_stream", b"x", head)
        assert b"inappropriate protocol" in answer
        assert server.node.refusals.counts == {"not_offered": 1}
    assert "this way in speaks JSON, and the request is Protobuf" in refused.one()


@every_way
@every_kind
async def test_a_cookie_that_does_not_count(way: str, kind: str, refused: RefusedLines) -> None:
    """Its token is good, but its page is not named: the line does not ask for a token."""
    async with guarded(allowed_origins="*") as server:
        headers = {"Cookie": "repeater_token=ann", "Origin": "https://a.test"}
        assert await status_of(server, way, kind, "", **headers) == 401
    line = refused.one()
    assert "cause=credentials" in line
    assert "one in the cookie does not count, because only '*' allows the page" in line
    assert "name the origin 'https://a.test' in allowed_origins" in line


@every_way
@every_kind
async def test_too_many_connections(way: str, kind: str, refused: RefusedLines) -> None:
    """A limit of all connections: the line names the setting."""
    async with (
        guarded(limits={"connections": 1}) as server,
        knocking(server, way, kind, "token=ann") as first,
    ):
        assert first == 200
        assert await status_of(server, way, kind, "token=ann") == 503
        assert server.node.refusals.counts == {"limit": 1}
    line = refused.one()
    assert "cause=limit why='the limit connections'" in line
    assert "mend='see the setting limits.connections, which is 1'" in line


@every_way
@every_kind
async def test_who_is_denied_and_who_comes_too_late(
    way: str, kind: str, refused: RefusedLines
) -> None:
    """A blocked user, and a server that shuts down."""
    async with guarded() as server:
        await server.node.denials.change(Denial("ann"))
        assert await status_of(server, way, kind, "token=ann") == 403
        server.node.draining = True
        assert await status_of(server, way, kind, "token=ann") == 503
        server.node.draining = False
    first, second = refused.all()
    assert "cause=denial why='the user is blocked' mend='lift it by unblock_user'" in first
    assert "cause=shutdown why='the server shuts down'" in second


@pytest.mark.parametrize(
    ("settings", "header", "text", "mend"),
    [
        ({}, "", "neither metrics_token nor API key, so nobody may", "set metrics_token, or"),
        ({"metrics_token": "t" * 32}, "", "has neither the metrics' token nor", "Bearer <metrics_"),
        ({"api_key": "t" * 32}, "X-API-Key: wrong-key", "is neither the metrics' token", "api_key"),
        ({"metrics_token": "t" * 32}, "Authorization: wrong-key", "is neither", "Bearer"),
    ],
)
async def test_the_metrics(
    settings: dict[str, str], header: str, text: str, mend: str, refused: RefusedLines
) -> None:
    """Closed metrics say what opens them; no key is in the line."""
    async with running(dev=False, **settings) as server, peer(server) as client:
        lines = f"{header}\r\n" if header else ""
        assert b" 401 " in await client.call("GET", "/metrics", head=lines)
        assert server.node.refusals.counts == {"api_key": 1}
    line = refused.one()
    assert line.startswith("refused what=metrics cause=api_key")
    assert text in line
    assert mend in line
    assert "status=401" in line
    assert "wrong-key" not in line
    assert "ttt" not in line


@pytest.mark.parametrize("behind", [False, True])
async def test_no_handshake(refused: RefusedLines, *, behind: bool) -> None:
    """What a proxy that does not pass `Upgrade` on makes of a WebSocket (426)."""
    async with running() as server, peer(server) as client:
        if behind:
            assert b" 200 " in await client.call("GET", "/health")
        assert (await ask(client, "/ws?channel=news"))[0] == 426
        assert server.node.refusals.counts == {"request": 1}
    line = refused.one()
    assert "the request is not the handshake of a WebSocket" in line
    assert "a proxy has to pass Upgrade and Connection on, by HTTP/1.1" in line
    assert "status=426" in line


@pytest.mark.parametrize("dev", [True, False])
async def test_no_handshake_of_a_newcomer(*, dev: bool) -> None:
    """An address typed into a browser: development mode says what to do, with the right status."""
    async with running(dev=dev) as server, peer(server) as client:
        answer = await client.call("GET", "/ws?channel=news", head="Connection: close\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nupgrade: websocket" in head.lower()
    assert (b"\r\nrepeater-refused: the request is not the handshake" in head.lower()) is dev
    assert (b": connect with ws:// or wss://; a proxy has to pass Upgrade" in body) is dev


async def test_a_wrong_handshake(refused: RefusedLines) -> None:
    """The library's reason is the line's."""
    async with running() as server, peer(server) as client:
        headers: Any = {**UPGRADE, "Sec-WebSocket-Key": "short"}
        assert (await ask(client, "/ws?channel=news", **headers))[0] == 400
    assert "the handshake of a WebSocket: invalid Sec-WebSocket-Key header: short" in refused.one()


@pytest.mark.parametrize("path", ["/events", "/connection/http_stream", "/emulation"])
@pytest.mark.parametrize("behind", [False, True])
async def test_another_method(path: str, refused: RefusedLines, *, behind: bool) -> None:
    """405, on the native path and behind it."""
    async with running() as server, peer(server) as client:
        if behind:
            assert b" 200 " in await client.call("GET", "/health")
        assert (await ask(client, path, "DELETE"))[0] == 405
        assert server.node.refusals.counts == {"method": 1}
    assert f"cause=method why='{path} does not take DELETE' status=405" in refused.one()


EMULATED = '{"session":"s","node":"%s","data":"{}"}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "cause", "text"),
    [
        ("[", {}, 400, "request", "the body is not a message of an SDK"),
        ("{}", {}, 400, "request", "the body is not a message of an SDK"),
        (EMULATED.replace('"s"', '""'), {}, 400, "request", "the message names no session"),
        (EMULATED, {}, 404, "request", "there is no such session"),
        ("x" * 70_000, {}, 413, "limit", "the body is larger than message_limit"),
        (EMULATED, {"Origin": "https://evil.test"}, 403, "origin", "'https://evil.test'"),
    ],
    ids=lambda one: str(one)[:16],
)
async def test_emulation(
    body: str,
    headers: dict[str, str],
    status: int,
    cause: str,
    text: str,
    refused: RefusedLines,
) -> None:
    """A message of an SDK's fallback that cannot be taken; development mode says why."""
    async with running() as server, peer(server) as client:
        sent = body.replace("%s", server.node.id).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        answer = await client.call("POST", "/emulation", sent, lines)
        assert int(answer.split(b" ")[1]) == status
        assert text.encode() in answer.partition(b"\r\n\r\n")[2]
        assert server.node.refusals.counts == {cause: 1}
    line = refused.one()
    assert f"what=emulation cause={cause}" in line
    assert text in line


@pytest.mark.parametrize(
    ("sent", "text", "mend"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "a TLS handshake came to a port without", "tls_cert"),
        (b"\x00\x01nonsense\r\n\r\n", "the first bytes are not an HTTP request", ""),
        (b"GET / HTTP/1.1\r\nCookie: " + b"x" * 20_000, "larger than head_limit", "cookies"),
    ],
)
async def test_the_first_bytes(sent: bytes, text: str, mend: str, refused: RefusedLines) -> None:
    """`wss://` on a port without TLS, and more cookies than a head may have."""
    async with running() as server, peer(server) as client:
        await client.stream.send_all(sent)
        assert await client.rest()
        assert server.node.refusals.counts == {"request": 1}
    line = refused.one()
    assert line.startswith("refused what=connection cause=request")
    assert text in line
    assert mend in line
    assert "x" * 30 not in line


async def test_plain_http_on_a_port_with_tls(authority: Authority, refused: RefusedLines) -> None:
    """`ws://` where only `wss://` is spoken."""
    async with running(**authority.settings) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTPS only" in await stream.receive_some()
        while server.acceptor.statistics().open:
            await trio.lowlevel.checkpoint()
    line = refused.one()
    assert "plain HTTP came to a port with TLS" in line
    assert "connect by https:// or wss://" in line


async def test_who_only_hangs_up_leaves_no_line(refused: RefusedLines) -> None:
    """As a load balancer's check of the port does."""
    async with running() as server:
        async with connected(server):
            pass
        while server.acceptor.statistics().open or not server.acceptor.statistics().accepted:
            await trio.lowlevel.checkpoint()
        assert not server.node.refusals.counts
    assert refused.all() == []


async def test_a_connection_that_makes_room(refused: RefusedLines) -> None:
    """Whoever is silent and goes for another one is one line, with its address."""
    async with (
        running(limits={"open_connections": 1}) as server,
        connected(server) as silent,
        peer(server) as client,
    ):
        assert b" 200 " in await client.call("GET", "/health")
        with pytest.raises(trio.BrokenResourceError):
            await silent.receive_some()
        assert server.node.statistics().limited == {"open_connections": 1}
        assert server.node.refusals.counts == {"limit": 1}
    line = refused.one()
    assert "what=connection cause=limit why='the limit open_connections'" in line
    assert "mend='see the setting limits.open_connections, which is 1'" in line
    assert "address=127.0.0.1" in line


async def test_an_address_with_too_many_connections(refused: RefusedLines) -> None:
    """Counted and noted once, where the subscription is refused."""
    async with (
        running(limits={"connections_per_address": 1}) as server,
        peer(server, "/ws?channel=news"),
        peer(server) as client,
    ):
        headers: Any = UPGRADE
        assert (await ask(client, "/ws?channel=news", **headers))[0] == 429
        assert server.node.statistics().limited == {"connections_per_address": 1}
    assert "why='the limit connections_per_address'" in refused.one()
