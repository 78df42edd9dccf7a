"""API calls over HTTP: natively and through Quart, with the same answers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.api.keys import ApiKey
from repeater.brokers.memory import MemoryBroker
from repeater.front.rest import Rest, RestOptions
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import StreamPosition
from repeater.testing import open_test_node
from tests.rest_callers import WAYS, caller
from tests.serving import UPGRADE, Peer, peer, running

EVENT = b'{"channel":"news","data":[1]}'
KEYED = "X-API-Key: secret\r\n"
OPTIONS = RestOptions(body_limit=524_288, head_limit=16_384, head_timeout=10.0)


def request(
    body: bytes, method: str = "publish", head: bytes = b"", *, length: bool = True
) -> bytes:
    start = b"POST /api/%s HTTP/1.1\r\nHost: a\r\n%s" % (method.encode(), head)
    return start + (b"Content-Length: %d\r\n" % len(body) if length else b"") + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunked(lines: Sequence[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in (*lines, b""))


async def answer(back_end: Peer) -> tuple[int, str, bytes]:
    """The next answer: status, content type, body."""
    head = (await back_end.until(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    size = int(fields["content-length"])
    while len(back_end.received) < size:
        back_end.received += await back_end.stream.receive_some()
    body, back_end.received = back_end.received[:size], back_end.received[size:]
    return int(head.split(" ")[1]), fields.get("content-type", ""), body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", b" 400 "),
        (b"{", b" 400 "),
        (b'{"channel":"a","data":"\xff"}', b" 400 "),
        (b'{"channel":"a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b" 400 "),
        (b"[]", b'"code":107'),
        (b'{"data":1}', b'"code":107'),
        (b'{"channel":"","data":1}', b'"code":107'),
        (b'{"channel":["a"],"data":1}', b'"code":107'),
        (b'{"channel":"a"}', b'"code":107'),
        (b'{"channel":"%s","data":1}' % (b"a" * 256), b'"code":107'),
        (b'{"channel":"x:a","data":1}', b'"code":102'),
        (b'{"channel":"a","data":"%s"}' % (b"a" * 600_000), b" 413 "),
    ],
)
async def test_a_bad_body_is_refused(way: str, body: bytes, expected: bytes) -> None:
    """Bad input gets its documented answer either way, and nothing is published."""
    async with running() as server, caller(server, way) as back_end:
        assert expected in await back_end.call("POST", "/api/publish", body)
        assert server.node.statistics().repeater.publications == 0


REQUESTS: tuple[bytes, ...] = (
    request(EVENT),
    request(EVENT, head=b"X-Centrifugo-Error-Mode: transport\r\n"),
    request(b"{}", head=b"X-Centrifugo-Error-Mode: transport\r\n"),
    request(b'{"channel":"x:a","data":1}', head=b"X-Centrifugo-Error-Mode: transport\r\n"),
    request(b'{"channels":["a",""],"data":1}', "broadcast"),
    request(b'{"commands":[{"publish":%s},null]}' % EVENT, "batch"),
    request(b'{"commands":0}', "batch"),
    request(EVENT, "publish?a=b"),
    request(EVENT, "nothing"),
    request(EVENT, "publish/"),
    request(EVENT, "p%75blish"),
    request(b"", length=False),
    request(b"", "stream", length=False),
    request(EVENT + b"\n{\n" + EVENT, "stream"),
    request(chunked([EVENT]), "publish", b"Transfer-Encoding: chunked\r\n", length=False),
    request(chunked([b"", EVENT]), "stream", b"Transfer-Encoding: chunked\r\n", length=False),
    request(
        chunked([EVENT[:9], EVENT[9:] + b"\n", b"{"]),
        "stream",
        b"Transfer-Encoding: chunked\r\n",
        length=False,
    ),
    request(EVENT, head=b"Content-Length: 29\r\n"),
    request(EVENT, head=b"X: a\r\n b\r\n"),
    request(EVENT, head=b"X: a\nY: b\r\n"),
    request(EVENT, head=b"X : a\r\n"),
    request(EVENT, head=b"Connection: close\r\n"),
    request(EVENT).replace(b"HTTP/1.1", b"HTTP/1.0"),
    request(EVENT).replace(b"Host: a\r\n", b""),
    request(EVENT).replace(b"POST", b"GET"),
    request(EVENT).replace(b"POST", b"PUT"),
    request(EVENT, "stream").replace(b"POST", b"GET"),
    request(EVENT).replace(b"POST /", b"POST http://a/"),
)


@pytest.mark.parametrize("sent", REQUESTS)
async def test_both_ways_answer_alike(sent: bytes) -> None:
    """Status, content type and body are the same on both ways."""
    async with running(channel={"history_size": 0}) as server:
        answers = []
        for way in WAYS:
            async with caller(server, way) as back_end:
                await back_end.stream.send_all(sent)
                answers.append(await answer(back_end))
        assert answers[0] == answers[1]


@pytest.mark.parametrize("way", WAYS)
async def test_the_key_is_needed(way: str) -> None:
    """401 comes before 404 and 405, and a caller without a key gets nothing natively."""
    async with running(dev=False, api_key="secret") as server, caller(server, way) as back_end:
        assert b" 200 " in await back_end.call("POST", "/api/publish", EVENT, KEYED)
        assert server.acceptor.statistics().rest.open == (way == "native")
        for method, target, head, status in (
            ("POST", "/api/publish", "", b" 401 "),
            ("POST", "/api/stream", "X-API-Key: Secret\r\n", b" 401 "),
            ("POST", "/api/stream", KEYED, b" 200 "),
            ("POST", "/api/batch", "Authorization: apikey secret\r\n", b" 200 "),
            ("POST", "/api/publish?api_key=secret", "", b" 200 "),
            ("POST", "/api/nothing", KEYED, b" 404 "),
            ("GET", "/api/publish", KEYED, b" 405 "),
            ("GET", "/api/stream", KEYED, b" 405 "),
        ):
            assert status in await back_end.call(method, target, EVENT, head)


@pytest.mark.parametrize("way", WAYS)
async def test_requests_in_one_write_are_answered_in_order(way: str) -> None:
    """Pipelining, streams of both kinds among the calls."""
    async with running() as server, caller(server, way) as back_end:
        await back_end.stream.send_all(
            request(EVENT)
            + request(chunked([EVENT]), "stream", b"Transfer-Encoding: chunked\r\n", length=False)
            + request(EVENT)
            + request(EVENT, "stream")
            + request(EVENT)
        )
        for expected in (b'"offset":1', b'"accepted":1', b'"offset":3', b'"accepted":1', b":5"):
            assert expected in (await answer(back_end))[2]
        assert server.acceptor.statistics().rest.open == (way == "native")


@pytest.mark.parametrize("way", WAYS)
async def test_requests_byte_by_byte(way: str) -> None:
    """Heads and bodies in pieces of one byte mean the same."""
    async with running() as server, caller(server, way) as back_end:
        for sent in (request(EVENT), request(EVENT, "stream")):
            for byte in sent:
                await back_end.stream.send_all(bytes([byte]))
            assert (await answer(back_end))[0] == 200
        await wait_all_tasks_blocked()  # an answer does not wait for fan-out
        assert server.node.statistics().repeater.publications == 2


@pytest.mark.parametrize("way", WAYS)
async def test_an_expectation_is_met(way: str) -> None:
    """`Expect: 100-continue` gets its interim answer, then the real one."""
    async with running() as server, caller(server, way) as back_end:
        for method, expected in (("publish", b'"offset":1'), ("stream", b'"accepted":1')):
            sent = request(EVENT, method, b"Expect: 100-continue\r\n")
            await back_end.stream.send_all(sent[: -len(EVENT)])
            assert b" 100 " in await back_end.until(b"\r\n\r\n")
            await back_end.stream.send_all(EVENT)
            assert expected in (await answer(back_end))[2]


@pytest.mark.parametrize("way", WAYS)
async def test_a_wish_to_close_is_honoured(way: str) -> None:
    """`Connection: close`: the answer says so, and the end follows."""
    async with running() as server, caller(server, way) as back_end:
        await back_end.stream.send_all(request(EVENT, head=b"Connection: close\r\n"))
        rest = (await back_end.rest()).lower()
        assert b" 200 " in rest
        assert b"connection: close" in rest


@pytest.mark.parametrize("way", WAYS)
async def test_broken_chunks_end_a_stream(way: str) -> None:
    """What came before them is published; the connection is of no further use."""
    async with running() as server, caller(server, way) as back_end:
        head = b"Transfer-Encoding: chunked\r\n"
        body = chunked([EVENT + b"\n"])[:-5] + b"what\r\n"
        await back_end.stream.send_all(request(body, "stream", head, length=False))
        assert b" 400 " in await back_end.rest()
        await wait_all_tasks_blocked()
        assert server.node.statistics().repeater.publications == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_is_published_while_it_comes(way: str) -> None:
    """Its first event is with the subscriber before its second is sent."""
    async with (
        running() as server,
        caller(server, way) as back_end,
        peer(server, "/ws?channel=news") as subscriber,
    ):
        await back_end.stream.send_all(
            request(b"", "stream", b"Transfer-Encoding: chunked\r\n", length=False)
        )
        for number in range(3):
            event = b'{"channel":"news","data":"event %d"}\n' % number
            await back_end.stream.send_all(b"%x\r\n%s\r\n" % (len(event), event))
            await subscriber.until(b'"event %d"' % number)
        await back_end.stream.send_all(b"0\r\n\r\n")
        assert b'"accepted":3' in (await answer(back_end))[2]


async def test_a_hand_over_in_mid_connection() -> None:
    """What was read beyond the last plain call is not lost: page, call and upgrade follow."""
    async with running() as server, peer(server) as client, peer(server) as back_end:
        upgrade = UPGRADE.format(path="/ws?channel=news", more="").encode()
        health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        await client.stream.send_all(request(EVENT) + health + request(EVENT) + health)
        for _ in range(4):
            assert (await answer(client))[0] == 200
        assert server.acceptor.statistics().rest.handed_over == 1
        await back_end.stream.send_all(request(EVENT))
        assert (await answer(back_end))[0] == 200
        await back_end.stream.send_all(upgrade)
        assert b" 101 " in await back_end.until(b"\r\n\r\n")


@pytest.mark.parametrize("way", WAYS)
async def test_requests_after_a_wish_to_close(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not served, and keep nothing alive: the connection ends by itself."""
    monkeypatch.setattr("repeater.front.handed_connection._LINGER", 0.1)
    async with running() as server, caller(server, way) as back_end:
        await back_end.stream.send_all(
            request(EVENT, head=b"Connection: close\r\n") + request(EVENT)
        )
        # One answer: natively the first request's; h11 answers 400 to requests after `close`.
        assert (await back_end.rest()).count(b"HTTP/1.1 ") == 1
        await server.acceptor.wait_empty()
        assert server.node.statistics().repeater.publications <= 1


HALF_CLOSED: dict[str, bytes] = {
    "plain": request(EVENT),
    "close": request(EVENT, head=b"Connection: close\r\n"),
    "http/1.0": request(EVENT).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "expect": request(EVENT, head=b"Expect: 100-continue\r\n"),
    "chunked": request(chunked([EVENT]), "publish", CHUNKED, length=False),
    "stream": request(EVENT, "stream"),
    "chunked stream": request(chunked([EVENT]), "stream", CHUNKED, length=False),
    "several": request(EVENT) + request(EVENT, "stream"),
    "half a call behind": request(EVENT) + request(EVENT)[:40],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HALF_CLOSED)
async def test_a_half_close_behind_a_call(way: str, kind: str) -> None:
    """A client that has said all it wants to gets its whole answer, and the connection ends."""
    async with running() as server, caller(server, way) as back_end:
        await back_end.stream.send_all(HALF_CLOSED[kind])
        await back_end.stream.send_eof()
        answers = await back_end.rest()
        assert answers.count(b" 200 ") == 1 + (kind == "several")
        assert answers.count(b'{"result":{') == 1 + (kind == "several")
        await server.acceptor.wait_empty()


async def test_noise_after_a_call() -> None:
    """Garbage and a head too large get the answers that they get on a fresh connection."""
    for noise, status in (
        (b"\x16\x03\x01\x02\r\n\r\n", b" 400 "),
        (b"GET /" + b"a" * 17_000, b" 4"),
    ):
        async with running() as server, peer(server) as client:
            await client.stream.send_all(request(EVENT))
            assert (await answer(client))[0] == 200
            await client.stream.send_all(noise)
            assert status in await client.rest()


async def test_shutdown_finishes_a_call_under_way() -> None:
    """It is answered, and told that the connection ends; silent connections hold nothing up."""
    async with trio.open_nursery() as nursery:  # noqa: SIM117 it outlives the server
        async with running() as server:
            silent, idle, calling = [
                Peer(await trio.open_tcp_stream("127.0.0.1", server.port)) for _ in range(3)
            ]
            await idle.call("POST", "/api/publish", EVENT)
            await calling.stream.send_all(request(EVENT)[:-1])
            while server.acceptor.statistics().rest.open < 2:
                await wait_all_tasks_blocked()

            async def go_on() -> None:
                assert not await idle.rest()
                await calling.stream.send_all(EVENT[-1:])

            nursery.start_soon(go_on)
    async with silent.stream, idle.stream, calling.stream:
        rest = (await calling.rest()).lower()
        assert b" 503 " in rest
        assert b"connection: close" in rest
        assert not await silent.rest()


class Line:
    """The other end of a connection that `Rest` serves, on a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.left: bytes | None = None
        """What `Rest.serve` returned, once it has."""

    def send(self, data: bytes) -> None:
        assert self._socket.send(data) == len(data)

    async def received(self) -> bytes:
        """Everything that is to be read now."""
        await wait_all_tasks_blocked()
        try:
            return self._socket.recv(1 << 20)
        except BlockingIOError:
            return b"(nothing)"
        except ConnectionResetError:
            return b""  # It was closed with something unread.

    async def hang_up(self) -> bytes:
        """End our side; everything that is still to be read, up to the end."""
        self._socket.shutdown(socket.SHUT_WR)
        return await self.received()

    async def serve(self, rest: Rest, sock: socket.socket) -> None:
        with sock:
            self.left = await rest.serve(sock, b"")


@asynccontextmanager
async def line(node: Node, rest: Rest | None = None) -> AsyncIterator[Line]:
    """One connection, served until the block ends."""
    rest = rest or Rest(node, ApiKey([], insecure=True), OPTIONS)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        async with trio.open_nursery() as nursery:
            end = Line(theirs)
            nursery.start_soon(end.serve, rest, ours)
            yield end
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed(autojump_clock: MockClock) -> None:
    """After 75 seconds without a request, not before."""
    async with open_test_node() as node, line(node) as end:
        end.send(request(EVENT))
        assert b" 200 " in await end.received()
        await trio.sleep(74)
        assert await end.received() == b"(nothing)"
        end.send(request(EVENT))
        assert b" 200 " in await end.received()
        await trio.sleep(76)
        assert (await end.received(), end.left) == (b"", b"")


async def test_a_head_that_never_ends(autojump_clock: MockClock) -> None:
    """The acceptor's deadline holds for every head of a connection."""
    async with open_test_node() as node, line(node) as end:
        end.send(request(EVENT) + b"POST /api/publish HTTP/1.1\r\nX: ")
        assert b" 200 " in await end.received()
        for _ in range(4):
            end.send(b"x")
            await trio.sleep(2)
        assert await end.received() == b"(nothing)"
        await trio.sleep(3)
        assert (await end.received(), end.left) == (b"", b"")


async def test_a_body_that_never_comes(autojump_clock: MockClock) -> None:
    """408 after 30 seconds in all, however slowly it drips; nothing is published."""
    async with open_test_node() as node, line(node) as end:
        end.send(request(EVENT)[: -len(EVENT)])
        for byte in EVENT[:15]:
            await trio.sleep(1.9)
            end.send(bytes([byte]))
        assert await end.received() == b"(nothing)"
        await trio.sleep(2)
        got = await end.received()
        assert b" 408 " in got
        assert b"connection: close" in got
        assert (await end.hang_up(), end.left) == (b"", b"")
        assert node.statistics().repeater.publications == 0


async def test_a_stream_that_falls_silent(autojump_clock: MockClock) -> None:
    """A blank line keeps it open; after 75 seconds of nothing it is summed up with 408."""
    async with open_test_node() as node, line(node) as end:
        end.send(request(b"", "stream", b"Content-Length: 1000\r\n", length=False) + EVENT + b"\n")
        for _ in range(3):
            await trio.sleep(74)
            end.send(b"\n")
        await trio.sleep(76)
        got = await end.received()
        assert b" 408 " in got
        assert b'{"accepted":1,"failed":0,"errors":[],"stopped_at":5}' in got
        assert b"nothing came for 75 s" in got


async def test_a_peer_that_does_not_read_is_reset(autojump_clock: MockClock) -> None:
    """Its answers wait in one place only, the call that they belong to, and not for ever."""
    async with open_test_node() as node, line(node) as end:
        for _ in range(4):
            end.send(request(b'{"commands":[%s]}' % b",".join([b"0"] * 8_000), "batch"))
        await trio.sleep(node.options.write_timeout - 1)
        assert end.left is None
        await trio.sleep(2)
        assert end.left == b""


async def test_drain_ends_what_is_idle_and_finishes_the_rest(autojump_clock: MockClock) -> None:
    """Idle: closed. A call under way: answered. A stream under way: summed up with 503."""
    async with open_test_node() as node:
        rest = Rest(node, ApiKey([], insecure=True), OPTIONS)
        connect = partial(line, node, rest)
        async with connect() as idle, connect() as calling, connect() as streaming:
            calling.send(request(EVENT)[:-1])
            streaming.send(request(b"", "stream", b"Content-Length: 1000\r\n", length=False))
            streaming.send(EVENT + b"\n" + EVENT)
            await wait_all_tasks_blocked()
            assert rest.statistics().open == 3
            rest.drain()
            assert await idle.received() == b""
            got = await streaming.received()
            assert b" 503 " in got
            assert b'{"accepted":1,"failed":0,"errors":[],"stopped_at":2}' in got
            assert b"the server shuts down" in got
            calling.send(EVENT[-1:])
            got = await calling.received()
            assert b" 200 " in got
            assert b"connection: close" in got
            assert await calling.received() == b""
            await trio.sleep(3)
            assert rest.statistics().open == 0


class BuggyBroker(MemoryBroker):
    """Has a bug."""

    def submit(self, *_: object, **__: object) -> StreamPosition | None:
        raise LookupError("a bug")


async def test_a_bug_in_a_call_ends_its_connection_only() -> None:
    """500, the log has the traceback, and the next connection is served."""
    async with open_test_node(broker=BuggyBroker()) as node:
        rest = Rest(node, ApiKey([], insecure=True), OPTIONS)
        for _ in range(2):
            async with line(node, rest) as end:
                end.send(request(EVENT))
                assert b" 500 " in await end.received()
                assert (await end.hang_up(), end.left) == (b"", b"")


async def test_bytes_behind_the_last_call_do_not_reset_its_answer(
    autojump_clock: MockClock,
) -> None:
    """They are read and discarded until the peer hangs up, or the close timeout is over."""
    for patient in (True, False):
        async with open_test_node() as node, line(node) as end:
            end.send(request(EVENT, head=b"Connection: close\r\n") + b"\r\n")
            await wait_all_tasks_blocked()
            end.send(b"\r\nnoise")
            assert b" 200 " in await end.received()
            assert end.left is None
            if patient:
                await trio.sleep(node.options.close_timeout + 0.1)
                assert await end.received() == b""
            else:
                assert await end.hang_up() == b""
            assert end.left == b""


STREAM = b"".join(
    (
        request(EVENT),
        request(b"{"),
        request(EVENT, "stream?a=b", b"Accept: */*\r\n"),
        request(
            chunked([EVENT[:5], EVENT[5:] + b"\n\n{"]),
            "stream",
            b"Transfer-Encoding: chunked\r\n",
            length=False,
        ),
        request(b'{"commands":[{"publish":%s}]}' % EVENT, "batch"),
        b"GET /health HTTP/1.1\r\n\r\n",
    )
)


def without_date(answer: bytes) -> bytes:
    return b"\r\n".join(one for one in answer.split(b"\r\n") if not one.startswith(b"date:"))


def served(pieces: Sequence[bytes]) -> tuple[list[bytes], bytes | None]:
    """The answers to a stream of requests that comes in these pieces, and what was left."""

    async def serve() -> tuple[list[bytes], bytes | None]:
        node_options = NodeOptions(channel=ChannelOptions(history_size=0))
        async with open_test_node(node_options) as node, line(node) as end:
            for piece in pieces:
                if end.left is None:
                    end.send(piece)
                    await wait_all_tasks_blocked()
                else:
                    end.left += piece
            answers = (await end.received()).split(b"HTTP/1.1 ")[1:]
            return [without_date(one) for one in answers], end.left

    return trio.run(serve)


WHOLE = served([STREAM])


def test_a_stream_of_requests() -> None:
    """Every plain request is answered, and the first that is not is left with all its bytes."""
    answers, left = WHOLE
    assert left == b"GET /health HTTP/1.1\r\n\r\n"
    assert [one[:3] for one in answers] == [b"200", b"400", b"200", b"200", b"200"]
    assert msgspec.json.decode(answers[-1].partition(b"\r\n\r\n")[2]) == {
        "replies": [{"publish": {}}]
    }


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(1, len(STREAM) - 1), max_size=30))
def test_requests_mean_the_same_however_they_are_cut(cuts: list[int]) -> None:
    """Where reads begin and end changes no answer, and loses no byte of what is left."""
    places = sorted({0, *cuts, len(STREAM)})
    assert served([STREAM[start:end] for start, end in pairwise(places)]) == WHOLE
