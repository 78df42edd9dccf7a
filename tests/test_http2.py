"""HTTP/2: what a peer may ask for at once, and what ends it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from repeater.front.http2_connection import FRAME, Connection
from repeater.front.hypercorn import HandoverStatistics
from repeater.front.hypercorn_http2 import EMPTY_FRAMES, STREAMS
from repeater.protocol.http.http2_frames import FrameCounter
from repeater.serving.server import Server
from tests.certificates import Authority, Stream, connect
from tests.serving import running

ENHANCE_YOUR_CALM = 11
MANY = 4 * EMPTY_FRAMES[1]  # while they are served, the allowance grows


class Browser:
    """A client's end of HTTP/2, which may also send frames that no client would."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False)
        )
        self.statuses: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goodbye: int | None = None
        self.closed = False
        self.confused = False
        self.sending = trio.Lock()

    async def flush(self) -> None:
        async with self.sending:
            if data := self.http.data_to_send():
                await self.stream.send_all(data)

    async def send(self, *frames: bytes) -> None:
        """Send these frames as they are; the peer may close the connection meanwhile."""
        await self.flush()
        try:
            await self.stream.send_all(b"".join(frames))
        except trio.BrokenResourceError:
            self.closed = True

    async def request(
        self, path: str, method: str = "GET", body: bytes | None = None, **more: str
    ) -> int:
        number = self.http.get_next_available_stream_id()
        head = {":method": method, ":path": path, ":scheme": "https", ":authority": "t", **more}
        self.http.send_headers(number, list(head.items()), end_stream=body is None)
        if body is not None:
            self.http.send_data(number, body, end_stream=True)
        await self.flush()
        return number

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self.read()

    async def read(self) -> None:
        """What comes next; `closed` is true at the end."""
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.closed = True
            return
        try:
            events = self.http.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.confused = True  # by an answer to frames that were sent without its knowledge
            return
        for event in events:
            self.note(event)
        if self.goodbye is None:
            await self.flush()

    def note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            body = self.bodies.get(event.stream_id, b"") + event.data
            self.bodies[event.stream_id] = body
            if event.flow_controlled_length:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goodbye = event.error_code


@asynccontextmanager
async def browser(
    server: Server,
    authority: Authority,
    settings: dict[h2.settings.SettingCodes, int] | None = None,
) -> AsyncIterator[Browser]:
    stream = await connect(server, authority, "h2")
    client = Browser(stream)
    client.http.local_settings = h2.settings.Settings(client=True, initial_values=settings or {})
    client.http.initiate_connection()
    await client.flush()
    try:
        yield client
    finally:
        await trio.aclose_forcefully(stream)


def statistics(server: Server) -> HandoverStatistics:
    return server.acceptor.statistics().handover


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


HEADERS = b"\x82\x86\x84\x41\x01t"  # GET https / with the authority "t", by HPACK's static table


def resets() -> list[bytes]:
    """Requests that are reset at once."""
    return [
        frame(1, HEADERS, 5, number) + frame(3, bytes(4), 0, number)
        for number in range(1, 2 * MANY, 2)
    ]


FLOODS = {
    "settings": [frame(4)] * MANY,
    "ping": [frame(6, bytes(8))] * MANY,
    "priority": [frame(2, b"\0\0\0\0\x10", 0, 2 * n + 1) for n in range(MANY)],
    "reset": resets(),
    "empty data": [frame(1, HEADERS[1:] + b"\x83", 4, 1), *([frame(0, b"", 0, 1)] * MANY)],
    "window update": [frame(8, b"\0\0\0\1")] * MANY,
    "unknown": [frame(77, b"?")] * MANY,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_ends_its_connection(
    authority: Authority, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames that carry nothing: told to calm down, closed, counted, and one line in the log."""
    async with running(**authority.settings) as server:
        with caplog.at_level(logging.INFO, "repeater"):
            for _ in range(2):
                async with browser(server, authority) as client:
                    await client.send(*FLOODS[kind])
                    await client.until(lambda client=client: client.closed)  # type: ignore[misc]
                    assert client.goodbye in (ENHANCE_YOUR_CALM, None)  # None: reset by then
        assert statistics(server).flood == 2
        lines = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert len(lines) == 1
        assert "Traceback" not in caplog.text
        async with browser(server, authority) as client:
            number = await client.request("/health")
            await client.until(lambda: number in client.ended)
        assert not server.node.failures.counts


@pytest.mark.parametrize(
    "frames",
    [
        [frame(1, HEADERS, 1, 1), *([frame(9, b"", 0, 1)] * 80)],
        [frame(1, HEADERS, 1, 1), *([frame(9, bytes(16_000), 0, 1)] * 3)],
        [frame(1, b"\x82\x86\x44\x02/\xff\x41\x01t", 5, 1)],
        [frame(1, b"\x86\x84\x41\x01t", 5, 1)],
        [frame(1, b"\x42\x07CONNECT\x41\x01t", 4, 1)],
        [frame(1, b"\xff\xff\xff\xff\xff\xff", 5, 1)],
        [frame(0, b"x", 0, 1)],
        [frame(0, bytes(20_000), 0, 1)],
        [frame(5, bytes(4) + HEADERS, 4, 1)],
        [frame(7, bytes(8))],
        [b"noise, and no frame at all" * 9],
    ],
)
async def test_invalid_frames_are_no_failure(
    authority: Authority, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a peer sends: its stream or connection ends, and nothing is logged above debug."""
    with caplog.at_level(logging.INFO):
        async with running(**authority.settings) as server:
            async with browser(server, authority) as client:
                await client.send(*frames)
                await client.until(lambda: bool(client.closed or client.resets or client.confused))
            await server.acceptor.wait_empty()
            assert not server.node.failures.counts
    assert not [one for one in caplog.records if one.name.startswith("repeater.") and one.exc_info]


async def test_a_page_has_several_streams(authority: Authority) -> None:
    """Event sources and calls of one page share a connection, as many as are announced."""
    async with running(**authority.settings) as server, browser(server, authority) as client:
        sources = [await client.request(f"/events?channel=c{n}") for n in range(STREAMS - 2)]
        await client.until(lambda: len(client.statuses) == len(sources))
        codes = h2.settings.SettingCodes
        assert client.http.remote_settings[codes.MAX_CONCURRENT_STREAMS] == STREAMS
        for n in range(STREAMS):
            body = b'{"channel":"c0","data":"event %d"}' % n
            call = await client.request("/api/publish", "POST", body)
            await client.until(lambda call=call: call in client.ended)  # type: ignore[misc]
            assert client.statuses[call] == 200
        last = b'"event %d"' % (STREAMS - 1)
        await client.until(lambda: last in client.bodies[sources[0]])
        assert not client.resets


async def test_more_requests_than_streams(authority: Authority) -> None:
    """A client that has more to ask than it may at once asks one after the other."""
    async with running(**authority.settings) as server:
        base = f"https://localhost:{server.port}"
        statuses: list[int] = []
        async with httpx.AsyncClient(http2=True, verify=authority.client()) as client:

            async def ask() -> None:
                statuses.append((await client.get(f"{base}/health")).status_code)

            async with trio.open_nursery() as nursery:
                for _ in range(3 * STREAMS):
                    nursery.start_soon(ask)
        assert statuses == [200] * 3 * STREAMS


GENEROUS = {
    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1,
    h2.settings.SettingCodes.MAX_FRAME_SIZE: 2**24 - 1,
    h2.settings.SettingCodes.HEADER_TABLE_SIZE: 2**32 - 1,
}


async def test_a_peer_that_takes_frames_of_any_size(authority: Authority) -> None:
    """Its answers come in small frames: the rest of each waits in the application, uncopied."""
    async with (
        running(**authority.settings) as server,
        browser(server, authority, GENEROUS) as client,
    ):
        sizes: list[int] = []
        note = client.note

        def note_size(event: h2.events.Event) -> None:
            if isinstance(event, h2.events.DataReceived):
                sizes.append(len(event.data))
            note(event)

        client.note = note_size  # type: ignore[method-assign]
        number = await client.request("/openapi.json")
        await client.until(lambda: number in client.ended)
        assert sum(sizes) > FRAME
        assert max(sizes) <= FRAME


def test_heads_for_a_peer_that_remembers_without_end() -> None:
    """What is remembered for it has our own bound, and each head is still read correctly."""
    ours, peer = Connection(), h2.connection.H2Connection()
    peer.local_settings = h2.settings.Settings(client=True, initial_values=GENEROUS)
    peer.initiate_connection()
    ours.initiate_connection()
    for number in range(1, 200, 2):
        request = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "t"}
        peer.send_headers(number, list(request.items()), end_stream=True)
        ours.receive_data(peer.data_to_send())
        value = f"{number} " + "x" * 1_000
        answer = [(b":status", b"200"), (b"x-value", value.encode())]
        ours.send_headers(number, answer, end_stream=True)
        events = peer.receive_data(ours.data_to_send())
        heads = [one for one in events if isinstance(one, h2.events.ResponseReceived)]
        assert dict(heads[0].headers)[b"x-value"] == value.encode()
    table = ours.encoder.header_table
    assert sum(32 + len(name) + len(value) for name, value in table.dynamic_entries) <= 4_096


@pytest.mark.parametrize("sizes", [[0], [0, 2**32 - 1], [100, 4_096], [8_192]])
def test_a_peer_that_changes_the_size_of_its_memory(sizes: list[int]) -> None:
    """Heads are read correctly behind each change."""
    ours, peer = Connection(), h2.connection.H2Connection()
    peer.initiate_connection()
    ours.initiate_connection()
    for number in range(1, 20, 2):
        for size in sizes:
            peer.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: size})
        request = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "t"}
        peer.send_headers(number, list(request.items()), end_stream=True)
        ours.receive_data(peer.data_to_send())
        ours.send_headers(number, [(b":status", b"200"), (b"x-value", b"1")], end_stream=True)
        events = peer.receive_data(ours.data_to_send())
        heads = [one for one in events if isinstance(one, h2.events.ResponseReceived)]
        assert dict(heads[0].headers)[b"x-value"] == b"1"


def test_a_head_is_written_without_the_huffman_code() -> None:
    """The library's code is quadratic, and a stranger chooses a value of 15 KB."""
    ours, peer = Connection(), h2.connection.H2Connection()
    peer.initiate_connection()
    ours.initiate_connection()
    request = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "t"}
    peer.send_headers(1, list(request.items()), end_stream=True)
    ours.receive_data(peer.data_to_send())
    ours.send_headers(1, [(b":status", b"200"), (b"x-value", b"a" * 15_000)])
    assert b"a" * 10_000 in ours.data_to_send()


CLOSED_WINDOW = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}


async def test_a_closed_window(authority: Authority) -> None:
    """Each answer that the peer makes no room for is reset; what it makes room for is served."""
    async with (
        running(write_timeout=0.4, **authority.settings) as server,
        browser(server, authority, CLOSED_WINDOW) as client,
    ):
        stalled = [await client.request("/openapi.json") for _ in range(STREAMS - 1)]
        while not client.resets:
            number = await client.request("/health")
            client.http.increment_flow_control_window(1_000, number)
            await client.flush()
            await client.until(lambda number=number: number in client.ended)  # type: ignore[misc]
        await client.until(lambda: set(client.resets) == set(stalled))
        assert statistics(server).stalled == len(stalled)
        assert not client.closed


async def test_answers_that_stall_together_end_apart(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write timeout has a random part, which is the whole of it here."""
    monkeypatch.setattr("repeater.front.hypercorn_http2.within", lambda _: trio.current_time())
    async with (
        running(write_timeout=3_600, **authority.settings) as server,
        browser(server, authority, CLOSED_WINDOW) as client,
    ):
        number = await client.request("/openapi.json")
        await client.until(lambda: number in client.resets)


async def test_a_window_that_opens_in_a_trickle(authority: Authority) -> None:
    """A byte now and then does not move the deadline of an answer."""
    async with (
        running(write_timeout=0.3, **authority.settings) as server,
        browser(server, authority, CLOSED_WINDOW) as client,
    ):
        number = await client.request("/openapi.json")

        async def trickle() -> None:
            while True:
                client.http.increment_flow_control_window(1, number)
                await client.flush()
                await trio.sleep(0.1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("repeater.front.hypercorn_http2.RATE", 1_000_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle)
                await client.until(lambda: number in client.resets)
                nursery.cancel_scope.cancel()
        assert statistics(server).stalled == 1


async def test_an_answer_before_the_whole_body(authority: Authority) -> None:
    """A body that is too large is refused before its end; the connection goes on."""
    async with (
        running(body_limit=2_000, **authority.settings) as server,
        browser(server, authority) as client,
    ):
        number = client.http.get_next_available_stream_id()
        head = {":method": "POST", ":path": "/api/publish", ":scheme": "https"}
        client.http.send_headers(number, [*head.items(), (":authority", "t")])
        for _ in range(3):
            client.http.send_data(number, bytes(1_000))
        await client.flush()
        await client.until(lambda: number in client.ended)
        assert client.statuses[number] == 413
        other = await client.request("/health")
        await client.until(lambda: other in client.ended)
        assert client.statuses[other] == 200


async def test_a_head_that_trickles(authority: Authority) -> None:
    """An unfinished frame has the deadline of a head; frames between do not move the idle one."""
    async with (
        running(head_timeout=0.4, **authority.settings) as server,
        browser(server, authority) as client,
    ):
        with trio.move_on_after(10):
            for byte in frame(1, HEADERS, 4, 1):
                await client.send(bytes([byte]))
                if client.closed:
                    break
                await trio.sleep(0.1)
            await client.until(lambda: client.closed)
        assert client.closed


@pytest.mark.parametrize("shutdown", [False, True])
async def test_a_shutdown(authority: Authority, shutdown: bool) -> None:
    """An idle connection is told and ended at once; one with a request ends behind its answer."""
    async with trio.open_nursery() as nursery, running(**authority.settings) as server:
        stream = await connect(server, authority, "h2")
        client = Browser(stream)
        client.http.initiate_connection()
        await client.flush()
        if shutdown:
            number = await client.request("/events?channel=news")
            await client.until(lambda: number in client.statuses)
        else:
            number = await client.request("/health")
            await client.until(lambda: number in client.ended)

        async def listen() -> None:
            await client.until(lambda: client.closed)
            await trio.aclose_forcefully(stream)

        nursery.start_soon(listen)
    assert client.goodbye == 0
    if shutdown:
        assert b"3001" in client.bodies[number]
        assert number in client.ended


FRAMES = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        frame(4, bytes(6)),
        frame(1, HEADERS, 0, 1),
        frame(9, b"", 0, 1),
        frame(9, b"", 4, 1),
        frame(0, b"", 0, 1),
        frame(0, bytes(300), 0, 1),
        frame(0, b"", 1, 1),
        frame(8, bytes(4)),
        frame(6, bytes(8)),
    )
)


@given(cuts=st.lists(st.integers(0, len(FRAMES)), max_size=20))
def test_frames_are_counted_however_they_are_cut(cuts: list[int]) -> None:
    """Where reads begin and end changes no number."""
    counter = FrameCounter()
    places = sorted({0, *cuts, len(FRAMES)})
    counted = [counter.feed(FRAMES[start:end]) for start, end in pairwise(places)]
    assert sum(one.empty for one in counted) == 5  # settings, two continuations, data, ping
    assert sum(one.window_updates for one in counted) == 1
    assert not counter.unfinished
    assert counter.frames == 10  # with the preface


def test_what_is_unfinished() -> None:
    """The preface, a frame's header, a frame other than DATA, and a head without its end are."""
    for begun, unfinished in (
        (b"", True),
        (FRAMES[:24], False),
        (FRAMES[:27], True),
        (FRAMES[:35], True),
        (FRAMES[:39], False),
        (FRAMES[:39] + frame(1, HEADERS, 0, 1), True),
        (FRAMES[:39] + frame(0, bytes(300), 0, 1)[:50], False),
    ):
        counter = FrameCounter()
        counter.feed(begun)
        assert counter.unfinished is unfinished
