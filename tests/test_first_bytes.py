"""The first bytes of every way in: however segments cut them, the first message arrives."""

from __future__ import annotations

import json

import pytest
import trio

from repeater.protocol.centrifugo.codecs import CENTRIFUGE_SSE, CENTRIFUGE_UNI_SSE
from repeater.protocol.sse.event_stream import EVENT_STREAM, OPENING, event, reset, retry
from repeater.publication import Publication
from repeater.subscriber import open_subscriber
from tests.eventsource import EventSource
from tests.first_bytes import ENDS, WAYS, record
from tests.relay import Relay, byte_by_byte
from tests.serving import running


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", WAYS)
async def test_the_first_message_arrives_in_any_parts(path: str, end: str) -> None:
    """Head, opening and first message in one part, in two cut anywhere, and byte by byte."""
    async with running() as server:
        recording = await record(server, path, end)
    expected = recording.read([recording.data])
    (message,) = map(json.loads, expected)
    assert message == {"n": 1} if path in ("/ws", "/events") else "connect" in message
    for parts in recording.cuts():
        assert recording.read(parts) == expected, parts


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", [path for path in WAYS if "sse" in path or "events" in path])
async def test_no_event_stream_has_a_carriage_return(path: str, end: str) -> None:
    """`eventsource` 2 for Node loses an event that has one before it in its segment."""
    async with running() as server:
        recording = await record(server, path, end)
    assert b"\r" not in recording.body()
    assert b"\n\n" in recording.body()


def test_data_with_carriage_returns_has_none_in_an_event() -> None:
    """In whatever an event stream is made of."""
    data = b'{"a":\r\n1,\r"b":\n2}'
    made = [OPENING, retry(1), event(data), reset(["a"], b"p")]
    made += [codec.ping or b"" for codec in (CENTRIFUGE_SSE, CENTRIFUGE_UNI_SSE, EVENT_STREAM)]
    assert b"\r" not in b"".join(made)


def test_an_opening_is_no_event() -> None:
    """To a browser it is the end of an event that has no data."""
    source = EventSource()
    source.feed(OPENING)
    source.feed(event(b"1"))
    assert source.data() == ["1"]


async def test_our_own_subscriber_hears_byte_by_byte(nursery: trio.Nursery) -> None:
    """Each byte of the server comes in a segment of its own."""
    async with running() as server:
        relay = Relay([server.port], byte_by_byte)
        await nursery.start(relay.run)
        async with open_subscriber(f"http://127.0.0.1:{relay.port}", ["news"]) as events:
            await server.node.publish(Publication("news", b'{"n":1}'))
            async for event_heard in events:
                assert event_heard.data == {"n": 1}
                break
        nursery.cancel_scope.cancel()
