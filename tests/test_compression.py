"""Compressed WebSockets of a whole server, with the clients of other libraries."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from centrifuge.fossil import apply_delta
from websockets.trio.client import ClientConnection, connect
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from repeater.config import load_settings
from repeater.serving.server import Server
from tests.serving import Peer, close_code, frame, peer, running

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
EVENT = {"text": "the same words again and again " * 40}
SUBSCRIBE = b'{"connect":{},"id":1}\n{"subscribe":{"channel":"%b"},"id":2}'


async def publish(back_end: Peer, channel: str = "news", data: object = EVENT) -> None:
    body = json.dumps({"channel": channel, "data": data}).encode()
    assert b'"offset"' in await back_end.call("POST", "/api/publish", body)


def text(message: str | bytes) -> Any:
    assert isinstance(message, str)
    return json.loads(message)


@asynccontextmanager
async def library(server: Server, path: str, **more: Any) -> AsyncIterator[ClientConnection]:
    """The client of `websockets`, which offers compression by itself."""
    async with connect(f"ws://127.0.0.1:{server.port}{path}", **more) as client:
        yield client


async def read_frames(client: Peer, number: int) -> list[tuple[int, bytes]]:
    """Whole frames of the server: the first byte and the payload as it was sent."""
    frames: list[tuple[int, bytes]] = []
    while True:
        data = client.received
        start = 2 if data[1:2] < b"\x7e" else 4
        if len(data) >= start:
            size = data[1] if start == 2 else int.from_bytes(data[2:4])
            if len(data) >= start + size:
                frames.append((data[0], data[start : start + size]))
                client.received = data[start + size :]
                if len(frames) == number:
                    return frames
                continue
        chunk = await client.stream.receive_some()
        assert chunk
        client.received += chunk


def inflate(frames: list[tuple[int, bytes]]) -> list[Any]:
    """What text frames say, each read without the others."""
    messages = []
    for first, payload in frames:
        assert first in (0x81, 0xC1)
        if first == 0xC1:
            payload = zlib.decompressobj(-15).decompress(payload)
        messages.append(json.loads(payload))
    return messages


@pytest.mark.parametrize("path", ["/ws?channel=news", "/connection/websocket"])
async def test_the_library_s_client(path: str) -> None:
    """`websockets` offers compression, sends compressed commands and reads compressed events."""
    async with (
        running(compression=True) as server,
        peer(server) as back_end,
        library(server, path) as client,
    ):
        assert client.response is not None
        assert client.response.headers["Sec-WebSocket-Extensions"] == (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        )
        if path != "/ws?channel=news":
            await client.send((SUBSCRIBE % b"news").decode() + " " * 200)
            replies = [text(await client.recv()) for _ in range(2)]
            assert [reply["id"] for reply in replies] == [1, 2]
        for number in range(3):
            await publish(back_end, data={"n": number, **EVENT})
            event = text(await client.recv())
            data = event["push"]["pub"]["data"] if "push" in event else event
            assert data == {"n": number, **EVENT}
        assert server.node.statistics().clients


async def test_wsproto_s_client() -> None:
    """The other library of Python: its extension agrees on the same."""
    async with running(compression=True) as server, peer(server) as back_end:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            client = WSConnection(ConnectionType.CLIENT)
            asked = Request("localhost", "/ws?channel=news", extensions=[PerMessageDeflate()])
            await stream.send_all(client.send(asked))
            events: list[Any] = []
            published = False
            while not any(isinstance(one, TextMessage) and one.message_finished for one in events):
                client.receive_data(await stream.receive_some())
                events += client.events()
                if events and not published:
                    published = True
                    assert isinstance(events[0], AcceptConnection)
                    assert events[0].extensions
                    await stream.send_all(client.send(Message("to be ignored " * 20)))
                    await publish(back_end)
            said = "".join(one.data for one in events if isinstance(one, TextMessage))
            assert json.loads(said) == EVENT


async def test_nothing_is_negotiated_unless_it_is_switched_on() -> None:
    """By default the offer is not answered."""
    async with running() as server, library(server, "/ws?channel=news") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


@pytest.mark.parametrize(
    ("more", "deflated"),
    [
        (OFFER, True),
        ("", False),
        ("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n", False),
    ],
)
async def test_each_connection_gets_what_it_negotiated(more: str, deflated: bool) -> None:
    """Compressed and plain subscribers hear the same events, each in order."""
    async with (
        running(compression=True) as server,
        peer(server) as back_end,
        peer(server, "/ws?channel=news", OFFER) as other,
        peer(server, "/ws?channel=news", more) as client,
    ):
        for number in range(3):
            await publish(back_end, data={"n": number, **EVENT})
        await publish(back_end, data=1)
        for one, is_deflated in ((other, True), (client, deflated)):
            frames = await read_frames(one, 4)
            assert [bool(first & 0x40) for first, _ in frames] == [is_deflated] * 3 + [False]
            assert inflate(frames) == [*({"n": n, **EVENT} for n in range(3)), 1]


async def test_a_namespace_may_switch_it_off() -> None:
    """Its publications are not compressed: pushed, recovered, or in an answer to `history`."""
    secret = {"compression": False, "history_size": 10, "allow_history_for_client": True}
    options = {"secret": secret, "open": {**secret, "compression": True}}
    async with (
        running(compression=True, namespaces=options, allow_anonymous=True) as server,
        peer(server) as back_end,
    ):
        for name, first in (("secret:a", 0x81), ("open:a", 0xC1)):
            await publish(back_end, name)
            async with peer(server, "/connection/websocket", OFFER) as client:
                subscribe = {"channel": name, "recover": True, "recoverable": True}
                commands: list[dict[str, Any]] = [
                    {"connect": {}},
                    {"subscribe": {**subscribe, "epoch": ""}},
                    {"history": {"channel": name, "limit": 10}},
                ]
                lines = [json.dumps({"id": n, **one}) for n, one in enumerate(commands, 1)]
                await client.stream.send_all(frame("\n".join(lines).encode()))
                frames = await read_frames(client, 3)
                _, subscribed, past = inflate(frames)
                assert subscribed["subscribe"]["publications"]
                assert past["history"]["publications"]
                await publish(back_end, name)
                frames += await read_frames(client, 1)
                assert [one for one, _ in frames[1:]] == [first] * 3
            async with peer(server, f"/ws?channel={name}", OFFER) as plain:
                await publish(back_end, name)
                assert (await read_frames(plain, 1))[0][0] == first


async def test_a_namespace_has_its_own_least_size() -> None:
    """From its `compression_min_size` on, in place of the server's."""
    options = {"long": {"compression_min_size": 5_000}, "short": {"compression_min_size": 10}}
    async with (
        running(compression=True, namespaces=options) as server,
        peer(server) as back_end,
        peer(server, "/ws?channel=long:a&channel=short:a", OFFER) as client,
    ):
        await publish(back_end, "long:a")
        await publish(back_end, "short:a", "a" * 50)
        frames = await read_frames(client, 2)
        assert [first for first, _ in frames] == [0x81, 0xC1]
        assert inflate(frames) == [EVENT, "a" * 50]


async def test_server_side_subscriptions_follow_their_channels() -> None:
    """One channel that is not compressed is enough for the answer of `connect` not to be."""
    options = {"secret": {"compression": False, "force_recovery": True, "history_size": 10}}
    async with (
        running(compression=True, namespaces=options) as server,
        peer(server) as back_end,
        peer(server, "/connection/uni_websocket", OFFER) as client,
    ):
        await publish(back_end, "secret:a")
        connect = {"subs": {"secret:a": {"recover": True, "epoch": ""}, "news": {}}}
        await client.stream.send_all(frame(json.dumps(connect).encode()))
        ((first, said),) = await read_frames(client, 1)
        assert first == 0x81
        assert json.loads(said)["connect"]["subs"]["secret:a"]["publications"]
        await publish(back_end, "secret:a")
        await publish(back_end, "news")
        assert [one for one, _ in await read_frames(client, 2)] == [0x81, 0xC1]


async def test_a_bomb_ends_its_connection() -> None:
    """A short frame of a long message: 1009, and nobody else notices."""
    stream = zlib.compressobj(wbits=-15)
    bomb = (stream.compress(b"a" * 50_000_000) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    parts = [bomb[at : at + 10_000] for at in range(0, len(bomb), 10_000)]
    async with (
        running(compression=True) as server,
        peer(server, "/connection/websocket", OFFER) as client,
    ):
        for number, part in enumerate(parts):
            sent = bytearray(frame(part, 0 if number else 1))
            sent[0] &= 0x7F
            sent[0] |= 0 if number else 0x40
            try:
                await client.stream.send_all(bytes(sent))
            except trio.BrokenResourceError:
                break
        assert close_code(await client.rest()) == 1009


async def test_a_compressed_frame_that_was_not_negotiated() -> None:
    """RSV1 without negotiation breaks the protocol, also where compression is on."""
    async with (
        running(compression=True) as server,
        peer(server, "/connection/websocket") as client,
    ):
        sent = bytearray(frame(b"\xaa\x02\x00"))
        sent[0] |= 0x40
        await client.stream.send_all(bytes(sent))
        assert close_code(await client.rest()) == 1002


async def test_a_long_batch_is_compressed_in_order() -> None:
    """More than is compressed in one step: everything arrives, deltas included."""
    options = {"delta": {"allowed_delta_types": "fossil", "delta_publish": True}}
    async with (
        running(compression=True, namespaces=options) as server,
        peer(server) as back_end,
        peer(server, "/ws?channel=delta:a", OFFER) as plain,
        peer(server, "/connection/websocket", OFFER) as sdk,
    ):
        subscribe = {"id": 2, "subscribe": {"channel": "delta:a", "delta": "fossil"}}
        await sdk.stream.send_all(
            frame(b'{"connect":{},"id":1}\n' + json.dumps(subscribe).encode())
        )
        await read_frames(sdk, 2)
        data = [{"n": n, "text": "word " * (n % 7 * 200)} for n in range(100)]
        commands = [{"publish": {"channel": "delta:a", "data": one}} for one in data]
        body = json.dumps({"commands": commands}).encode()
        assert b"error" not in await back_end.call("POST", "/api/batch", body)
        assert inflate(await read_frames(plain, 100)) == data
        pushes = [one["push"]["pub"] for one in inflate(await read_frames(sdk, 100))]
        assert [one["offset"] for one in pushes] == list(range(1, 101))
        assert "delta" not in pushes[0]
        assert sum("delta" in one for one in pushes) > 60
        base = b""
        for push, one in zip(pushes, data, strict=True):
            text = push["data"].encode()
            base = apply_delta(base, text) if "delta" in push else text
            assert json.loads(base) == one


async def test_a_reload_holds_for_new_connections() -> None:
    """Those that are there keep what they negotiated, also the least size."""
    same = {"dev": True, "port": 0, "allowed_hosts": "*"}
    async with (
        running(compression=True) as server,
        peer(server) as back_end,
        peer(server, "/ws?channel=news", OFFER) as old,
    ):
        changed = load_settings(**same, compression=True, compression_min_size=20)
        assert await server.reload(changed) == (("compression_min_size",), ())
        async with peer(server, "/ws?channel=news", OFFER) as new:
            await publish(back_end, data="a" * 60)
            assert (await read_frames(new, 1))[0][0] == 0xC1
            assert (await read_frames(old, 1))[0][0] == 0x81
            await publish(back_end)
            assert await read_frames(old, 1) == await read_frames(new, 1)
        assert "compression" in (await server.reload(load_settings(**same))).live
        async with peer(server, "/ws?channel=news", OFFER) as plain:
            await publish(back_end)
            assert (await read_frames(old, 1))[0][0] == 0xC1
            assert (await read_frames(plain, 1))[0][0] == 0x81


async def test_connections_share_everything() -> None:
    """Nothing that compresses belongs to a connection: codec and compressor are the server's."""
    async with (
        running(compression=True) as server,
        peer(server, "/ws?channel=news", OFFER),
        peer(server, "/ws?channel=news", OFFER),
        peer(server, "/ws?channel=news"),
    ):
        while len(server.node.registry.clients) < 3:
            await trio.lowlevel.checkpoint()
        codecs = {id(client.codec) for client in server.node.registry.clients}
        assert len(codecs) == 2
        names = sorted(client.codec.name for client in server.node.registry.clients)
        assert names == ["plain", "plain-deflate", "plain-deflate"]
