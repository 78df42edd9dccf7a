"""What a client may send by default: good clients never notice, and floods end."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repeater.errors import NO_PONG, TOO_MANY_REQUESTS
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.protocol.websocket.frames import FrameReader
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.conversation import Talk, talking
from tests.refusing import usual
from tests.serving import UPGRADE, close_code, frame, peer, running

OPEN = NodeOptions(channel=ChannelOptions(allow_publish_for_client=True))
PING, PONG, CONTINUATION, TEXT = 9, 10, 0, 1


def fragment(payload: bytes, opcode: int = CONTINUATION) -> bytes:
    """A masked frame that is not the last of its message."""
    made = frame(payload, opcode)
    return bytes([made[0] & 0x7F]) + made[1:]


async def refusals(node: Node) -> int:
    return sum(node.statistics().limited.values())


async def test_a_cursor_is_never_refused(autojump_clock: MockClock) -> None:
    """A user who drags something for ten minutes publishes 60 times a second."""
    async with open_test_node(OPEN) as node, talking(node) as talk:
        for second in range(600):
            for _ in range(60):
                await talk.session.receive(
                    talk.command(publish={"channel": "c", "data": {"x": second, "y": 1}})
                )
            await trio.sleep(1)
        assert await refusals(node) == 0


async def test_an_sdk_that_comes_back_is_never_refused() -> None:
    """It subscribes to all its 128 channels at once, and asks four things of each."""
    async with open_test_node(OPEN) as node, talking(node) as talk:
        for number in range(128):
            await talk.subscribe(f"c{number}")
            for method in ("presence", "presence_stats", "history"):
                await talk.ask(**{method: {"channel": f"c{number}"}})
        assert await refusals(node) == 0


async def test_asked_pongs_are_free_and_others_count(autojump_clock: MockClock) -> None:
    """One pong for each ping; one more is a command like others, and thousands end the client."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_test_node(NodeOptions(ping_interval=20, pong_timeout=15)) as node:
        async with connect(node, transport, ready=False) as client:
            talk = Talk(node, client, transport)
            await talk.connect()
            await trio.sleep(22)  # the first ping comes after 10 to 21 s; its pong has 15 s
            assert b"{}" in transport.sent
            before = [client.throttle]
            for _ in range(2):
                await talk.session.receive("{}")
                before.append(client.throttle)
            assert before[1] is None
            assert before[2] is not None
            await talk.session.receive("\n".join(["{}"] * 2_000))
            await trio.lowlevel.checkpoint()
        assert usual(client.end) == TOO_MANY_REQUESTS
        assert usual(transport.closed_with) == TOO_MANY_REQUESTS


async def test_who_answers_with_anything_is_alive(autojump_clock: MockClock) -> None:
    """Only silence is cut: a pong that was counted as a command is a sign of life, too."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with (
        open_test_node(NodeOptions(ping_interval=20, pong_timeout=5)) as node,
        connect(node, transport, ready=False) as client,
    ):
        await Talk(node, client, transport).connect()
        await trio.sleep(100)
    assert client.end is NO_PONG


FLOODS = {
    "pings": frame(b"", PING) * 1_000,
    "empty fragments": fragment(b"", TEXT) + fragment(b"") * 1_000,
    "small fragments": fragment(b"a", TEXT) + fragment(b"a" * 60) * 1_000,
    "unasked pongs": frame(b"", PONG) * 1_000,
}


@pytest.mark.parametrize("path", ["/ws?channel=news", "/connection/websocket"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_frames_ends_with_3013(flood: str, path: str) -> None:
    """Whatever costs work and brings no message; the close says why."""
    async with running() as server, peer(server, path) as flooding:
        if path == "/connection/websocket":
            await flooding.stream.send_all(frame(b'{"connect":{},"id":1}'))
            await flooding.until(b"connect")
        await flooding.stream.send_all(FLOODS[flood])
        assert close_code(await flooding.rest()) == 3013


async def test_a_plain_subscriber_that_talks_ends_with_3013() -> None:
    """Nobody reads its messages, and they cost work all the same."""
    async with running() as server, peer(server, "/ws?channel=news") as flooding:
        await flooding.stream.send_all(frame(b"x") * 1_000)
        assert close_code(await flooding.rest()) == 3013


@pytest.mark.parametrize("behind", [False, True])
async def test_a_unidirectional_client_that_talks_ends_with_3013(*, behind: bool) -> None:
    """After its first message nobody reads its messages, by either way in."""
    async with running() as server, peer(server) as flooding:
        if behind:
            assert b" 404 " in await flooding.call("GET", "/nothing")
        head = UPGRADE.format(path="/connection/uni_websocket", more="")
        await flooding.stream.send_all(head.encode() + frame(b"{}"))
        await flooding.until(b'connect"')
        await flooding.stream.send_all(frame(b"{}") * 1_000)
        assert close_code(await flooding.rest()) == 3013


async def test_large_fragments_do_not_count() -> None:
    """An upload in honest pieces is one message, whatever their number."""
    reader = FrameReader(10_000_000)
    reader.feed(fragment(b"a" * 125, TEXT))
    assert (reader.frames, reader.idle_frames) == (1, 1)
    long = fragment(b"", TEXT)[:1] + b"\xfe" + (200).to_bytes(2) + bytes(4) + b"a" * 200
    reader = FrameReader(10_000_000)
    reader.feed(long)
    assert (reader.frames, reader.idle_frames) == (1, 0)
