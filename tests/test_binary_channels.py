"""Channels of any bytes: published by every way in, and heard by those who can carry them."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import NOTHING_GRANTED, ConnectionGrant, SubscriptionGrant
from repeater.api.methods import call
from repeater.api.stream import EventStream
from repeater.brokers.receipts import settled
from repeater.clients.joining import server_side_wish
from repeater.clients.openings import GrantedChannel, open_subscription
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import ReplyError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_UNI_ASGI,
    PLAIN,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.centrifugo.deflated_codecs import Compression
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.conversation import FakeVerifier, outcome, talking
from tests.http_streams import peer as http_peer
from tests.refusing import usual_error
from tests.serving import close_code, peer, running
from tests.websocket_ways import websocket

pytestmark = pytest.mark.timeout(60)

ANY = b"\x02\xff\x00\r\n{"
"""Bytes that are no text, and begin as the mark of a binary message does."""
B64 = b64encode(ANY).decode()
OPEN: dict[str, Any] = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_client": True,
    "allow_publish_for_anonymous": True,
    "allow_history_for_client": True,
    "allow_history_for_anonymous": True,
}
BINARY = ChannelOptions(publication_data_format="binary", **OPEN)
OPTIONS = NodeOptions(
    insecure=True,
    channel=ChannelOptions(**OPEN),
    namespaces={"bin": BINARY, "o": ChannelOptions(publication_data_format="json_object", **OPEN)},
)
SETTINGS = {"namespaces": {"bin": {"publication_data_format": "binary"}}}
REFUSED = {"code": 108, "message": "binary channel"}


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_test_node(OPTIONS) as opened:
        yield opened


async def kept(node: Node, channel: str = "bin:c") -> list[tuple[bytes, bool]]:
    publications, _ = await node.history(channel)
    return [(bytes(one.data), one.binary) for one in publications]


class TestPublishing:
    """By whichever way, a publication is marked by its channel's format."""

    async def test_by_the_library(self, node: Node) -> None:
        """Any bytes in a binary channel, none included; in other channels JSON text only."""
        for data in (ANY, b"", b'{"a":1}'):
            await node.publish(Publication("bin:c", data))
        assert await kept(node) == [(ANY, True), (b"", True), (b'{"a":1}', True)]
        for publication in (
            Publication("c", ANY),
            Publication("c", b""),
            Publication("c", b"1", binary=True),
            Publication("o:c", b"1"),
            Publication("bin:c", ANY, tags={"k": 1}),  # type: ignore[dict-item]
        ):
            with pytest.raises(ReplyError, match="107"):
                await node.publish(publication)

    @pytest.mark.parametrize(
        ("fields", "data"),
        [
            ({"b64data": B64}, ANY),
            ({"b64data": ""}, b""),
            ({}, b""),
            ({"data": {"a": [1]}}, b'{"a": [1]}'),  # the JSON text's own bytes
            ({"data": 1, "b64data": B64}, ANY),
        ],
    )
    async def test_by_the_server_api(self, node: Node, fields: Any, data: bytes) -> None:
        """`b64data` of any bytes, and the text of `data`; in `broadcast` and `batch` as well."""
        event = {"channel": "bin:c", **fields}
        commands = [{"publish": event}, {"broadcast": {"channels": ["bin:c", "bin:d"], **fields}}]
        for method, body in (
            ("publish", event),
            ("broadcast", {"channels": ["bin:c"], **fields}),
            ("batch", {"commands": commands}),
        ):
            answer = await call(node, method, json.dumps(body).encode())
            assert b"error" not in answer.body
        assert await kept(node) == 4 * [(data, True)]
        assert await kept(node, "bin:d") == [(data, True)]

    async def test_by_a_stream(self, node: Node) -> None:
        """Each line of `POST /api/stream` is one."""
        stream = EventStream(node, 1_000)
        lines = b'{"channel":"bin:c","b64data":"%b"}\n{"channel":"c","b64data":"%b"}\n'
        await stream.feed(lines % (B64.encode(), B64.encode()))
        await stream.end()
        summary = json.loads((await stream.answer()).body)["result"]
        assert (summary["accepted"], summary["failed"]) == (1, 1)
        assert await kept(node) == [(ANY, True)]

    @pytest.mark.parametrize("b64data", ["%", "/w==" * 3 + "!", B64[:-1]])
    async def test_what_is_no_base64_is_an_error(self, node: Node, b64data: str) -> None:
        """107; as is, in a channel of JSON, Base64 of what is no JSON."""
        for event in (
            {"channel": "bin:c", "b64data": b64data},
            {"channel": "c", "b64data": B64},
            {"channel": "o:c", "b64data": b64encode(b"1").decode()},
        ):
            answer = await call(node, "publish", json.dumps(event).encode())
            assert json.loads(answer.body)["error"]["code"] == 107
        both = {"channels": ["bin:c", "c"], "b64data": B64}
        answer = await call(node, "broadcast", json.dumps(both).encode())
        first, second = json.loads(answer.body)["result"]["responses"]
        assert first["result"]["offset"] == 1
        assert second["error"]["code"] == 107

    async def test_by_a_client_that_speaks_json(self, node: Node) -> None:
        """Error 108: it could not hear what it says."""
        async with talking(node) as talk:
            reply = await talk.ask(publish={"channel": "bin:c", "data": 1})
            assert usual_error(reply["error"]) == REFUSED


async def test_history_of_the_server_api(node: Node) -> None:
    """Binary publications have `b64data` in place of `data`; the answer is bounded by its bytes."""
    await node.publish(Publication("bin:c", ANY, tags={"k": "v"}))
    await node.publish(Publication("bin:c", b""))
    answer = await call(node, "history", b'{"channel":"bin:c","limit":-1}')
    assert json.loads(answer.body)["result"]["publications"] == [
        {"b64data": B64, "offset": 1, "tags": {"k": "v"}},
        {"b64data": "", "offset": 2},
    ]
    for _ in range(3):
        await node.publish(Publication("bin:d", bytes(node.options.outbox_limit // 4)))
    answer = await call(node, "history", b'{"channel":"bin:d","limit":-1}')
    assert len(json.loads(answer.body)["result"]["publications"]) == 1


class TestPlainSubscribers:
    """The bytes are a binary message beside the text messages of other channels."""

    @pytest.mark.parametrize("codec", [PLAIN, PLAIN_ASGI])
    async def test_messages(self, node: Node, codec: Codec) -> None:
        """A batch has both kinds, in order; an empty message is one too."""
        transport = MemoryTransport(codec)
        async with connect(node, transport, ["bin:c", "c"]):
            for data in (ANY, b"", b"1"):
                node.submit(Publication("bin:c", data))
            node.submit(Publication("c", b"1"))
            await wait_all_tasks_blocked()
        assert transport.messages() == [ANY, b"", b"1", 1]

    def test_compressed_frames(self) -> None:
        """Keep their kind; what does not become shorter by it stays as it is."""
        codec = Compression().codec(PLAIN, 1)
        run = [Publication("bin:c", data, binary=True) for data in (ANY, ANY * 50)]
        (chunk,) = codec.publications([*run, Publication("c", b'"%b"' % (b"1" * 300))])
        assert chunk.startswith(b"\x82\x06" + ANY + b"\xc2")
        size = chunk[9]
        inflated = zlib.decompressobj(-15).decompress(chunk[10 : 10 + size] + b"\0\0\xff\xff")
        assert inflated == ANY * 50
        assert chunk[10 + size] == 0xC1

    @pytest.mark.parametrize("way", ["native", "asgi"])
    async def test_websockets(self, way: str) -> None:
        """A binary frame with the bytes."""
        async with (
            running(**SETTINGS) as server,
            websocket(server, way, "/ws?channel=bin:c&channel=c") as client,
        ):
            long = bytes(range(256)) * 300
            for data in (ANY, b"", long[:300], long):
                await server.node.publish(Publication("bin:c", data))
            await server.node.publish(Publication("c", b"1"))
            received = await client.until(b"\x81\x011")
            assert received == b"".join(
                (
                    b"\x82\x06" + ANY,
                    b"\x82\x00",
                    b"\x82\x7e\x01\x2c" + long[:300],
                    b"\x82\x7f" + len(long).to_bytes(8) + long,
                    b"\x81\x011",
                )
            )

    @pytest.mark.parametrize("end", ["native", "asgi"])
    async def test_event_streams(self, end: str) -> None:
        """Are text: 400, and the body says why."""
        async with running(**SETTINGS) as server, http_peer(server, end) as client:
            status, body = await client.call("GET", "/events?channel=c&channel=bin:c")
            assert (status, body.partition(b":")[0].strip()) == (400, b"binary channel")

    async def test_channels_of_a_token(self, caplog: pytest.LogCaptureFixture) -> None:
        """Those that an event stream can carry; a line of the log names the others."""
        channels = {"bin:c": SubscriptionGrant(), "c": SubscriptionGrant()}
        verifier = FakeVerifier({"t": ConnectionGrant("ann", channels=channels)})
        async with running(**SETTINGS) as server:
            server.node.verifier = verifier
            async with http_peer(server) as client:
                response = await client.request("GET", "/events?token=t")
                assert response.status_code == 200
                (mine,) = server.node.registry.clients
                assert list(mine.channels) == ["c"]
        (line,) = [one for one in caplog.messages if "a binary channel was left out" in one]
        assert "user=ann" in line
        assert "channel=bin:c" in line


class TestClientsOfJSON:
    """None of them is sent a byte that is no JSON."""

    async def test_subscribe(self, node: Node) -> None:
        """108, whatever else the client asks for, and no listener is left."""
        async with talking(node) as talk:
            assert usual_error(await talk.subscribe("bin:c")) == REFUSED
            again = await talk.subscribe("bin:c", recover=True, epoch="e", token="t")
            assert usual_error(again) == REFUSED
            assert "bin:c" not in node.hub.channels
            reply = await talk.ask(history={"channel": "bin:c", "limit": 1})
            assert usual_error(outcome(reply, "history")) == REFUSED

    async def test_channels_of_connect(self, caplog: pytest.LogCaptureFixture) -> None:
        """A token's, a personal one and those that the client names are left out, each logged."""
        options = msgspec.structs.replace(
            OPTIONS, user_personal_channel=True, personal_channel_namespace="bin"
        )
        channels = {"bin:c": SubscriptionGrant(), "c": SubscriptionGrant()}
        verifier = FakeVerifier({"t": ConnectionGrant("ann", channels=channels)})
        async with (
            open_node(options, verifier=verifier) as node,
            talking(node, connected=False, ends=False) as talk,
        ):
            result = await talk.connect("t", subs={"bin:d": {}, "d": {}})
            assert list(result["subs"]) == ["c", "d"]
            await node.subscribe("ann", "bin:e")
            await node.subscribe("ann", "e")
            assert list(talk.client.channels) == ["c", "d", "e"]
        lines = [one for one in caplog.messages if "a binary channel was left out" in one]
        assert len(lines) == 4
        assert all("user=ann" in line for line in lines)
        for line, channel in zip(lines, ("bin:c", "bin:#ann", "bin:d", "bin:e"), strict=True):
            assert channel in line

    async def test_a_client_at_its_limit_stays(self) -> None:
        """A subscription that it could not have does not count against its limit of channels."""
        options = msgspec.structs.replace(OPTIONS, channel_limit=1)
        verifier = FakeVerifier({"t": ConnectionGrant("ann")})
        async with (
            open_node(options, verifier=verifier) as node,
            talking(node, connected=False) as talk,
        ):
            await talk.connect("t", subs={"c": {}})
            await node.subscribe("ann", "bin:c")
            assert list(talk.client.channels) == ["c"]
            assert talk.client.end is None

    async def test_a_unidirectional_client(self, caplog: pytest.LogCaptureFixture) -> None:
        """What the server gives is left out, also if the client names it to recover it."""
        channels = {"bin:c": SubscriptionGrant(), "c": SubscriptionGrant()}
        verifier = FakeVerifier({"t": ConnectionGrant("ann", channels=channels)})
        transport = MemoryTransport(CENTRIFUGE_UNI_ASGI)
        async with (
            open_node(OPTIONS, verifier=verifier) as node,
            connect(node, transport, ready=False) as client,
        ):
            request = '{"token":"t","subs":{"bin:c":{"recover":true}}}'
            await UnidirectionalSession(node, client).receive(request)
            await node.publish(Publication("bin:c", ANY))
            await node.publish(Publication("c", b"1"))
            await wait_all_tasks_blocked()
        (connected, publication) = transport.messages()
        assert list(connected["connect"]["subs"]) == ["c"]
        assert publication["pub"]["data"] == 1
        assert len([one for one in caplog.messages if "a binary channel was left out" in one]) == 1

    @pytest.mark.parametrize("path", ["uni_websocket", "uni_sse"])
    async def test_a_unidirectional_client_that_asks_itself(self, path: str) -> None:
        """It has no replies: the end of the connection says it, and that it may stay away."""
        asked = quote('{"subs":{"bin:c":{},"c":{}}}')
        path = f"/connection/{path}?cf_connect={asked}"
        async with running(**SETTINGS) as server:
            if "websocket" in path:
                async with peer(server, path) as client:
                    received = await client.rest()
                    assert close_code(received) == 3508
            else:
                async with http_peer(server) as stream:
                    await stream.request("GET", path)
                    received = await stream.rest()
            assert b'{"disconnect":{"code":3508,"reason":"binary channel' in received


class TestAChannelThatBecameBinary:
    """Who was there before stays, and is left out: counted, and logged."""

    @pytest.mark.parametrize("delta", ["", "fossil"])
    async def test_live(self, delta: str, caplog: pytest.LogCaptureFixture) -> None:
        """The next publication of JSON arrives, whole where deltas were negotiated."""
        before = ChannelOptions(
            allowed_delta_types=frozenset({"fossil"}), delta_publish=True, **OPEN
        )
        async with (
            open_test_node(NodeOptions(insecure=True, channel=before)) as node,
            talking(node) as talk,
        ):
            await talk.subscribe("c", delta=delta)
            text = b'{"text":"the same text as ever","number":%d}'
            await node.publish(Publication("c", text % 1))
            await wait_all_tasks_blocked()
            for number in (2, 3):
                node.reload(NodeOptions(insecure=True, channel=BINARY))
                node.submit(Publication("c", text % 0))
                node.submit(Publication("c", ANY))
                await wait_all_tasks_blocked()
                node.reload(NodeOptions(insecure=True, channel=before))
                node.submit(Publication("c", text % number))
                await wait_all_tasks_blocked()
            found = await talk.data()
            whole = [(text % number).decode() for number in (1, 2, 3)]
            assert found == (whole if delta else [json.loads(one) for one in whole])
            assert node.statistics().repeater.left_out == 4
        lines = [one for one in caplog.messages if "binary publications were left out" in one]
        assert len(lines) == 1

    async def test_recovered(self, node: Node, caplog: pytest.LogCaptureFixture) -> None:
        """A recovery and a history are whole without them, and the log tells of it."""
        top = None
        for data, binary in ((b"1", False), (ANY, True), (b"3", False)):
            publication = Publication("c", data, binary=binary)
            top = await settled(node.broker.submit(publication, node.channels.options("c")))
        assert top is not None
        async with talking(node) as talk:
            result = await talk.subscribe("c", recover=True, recoverable=True, epoch=top.epoch)
            assert result["recovered"]
            assert [one["offset"] for one in result["publications"]] == [1, 3]
            reply = await talk.ask(history={"channel": "c", "limit": 10})
            assert [one["offset"] for one in reply["history"]["publications"]] == [1, 3]
        lines = [one for one in caplog.messages if "left out of an answer" in one]
        assert len(lines) == 2
        assert all("channel=c" in one and "publications=1" in one for one in lines)

    async def test_what_gathered(self, caplog: pytest.LogCaptureFixture) -> None:
        """Publications between the answer of one channel and that of another one, too."""
        async with open_test_node(OPTIONS) as node, talking(node) as talk:
            wanted = GrantedChannel("c", NOTHING_GRANTED, server_side_wish(None))
            joining = await open_subscription(node, talk.client, wanted)
            for data, binary in ((ANY, True), (b"2", False)):
                publication = Publication("c", data, binary=binary)
                node.broker.submit(publication, node.channels.options("c"))
            await wait_all_tasks_blocked()
            joining.tell()
            assert await talk.data() == [2]
        assert len([one for one in caplog.messages if "left out of an answer" in one]) == 1

    @pytest.mark.parametrize("codec", [EVENT_STREAM, EVENT_STREAM.of_channel, "set"])
    def test_event_streams(self, codec: Any) -> None:
        """Get the id alone, so that a client that comes back does not count as behind."""
        if codec == "set":
            codec = EVENT_STREAM.of_set({"c": StreamPosition(0, "e"), "d": StreamPosition(0, "e")})
        binary = Publication("c", ANY, 1, "e", binary=True)
        (chunk,) = codec.publications([binary]) or [b""]
        assert chunk.startswith(b"id: ") or codec is EVENT_STREAM
        assert b"data:" not in chunk
        assert codec.size(binary) == 0
        (chunk,) = codec.publications([binary, Publication("c", b"1", 2, "e")])
        assert b"data: 1\n\n" in chunk

    def test_filters(self) -> None:
        """A filter that would have them changes nothing."""
        codec = CENTRIFUGE_JSON_ASGI.filtered(TagsFilter(key="k", cmp="ex"))
        binary = Publication("c", ANY, tags={"k": "v"}, binary=True)
        assert codec.publications([binary]) == []
        assert codec.size(binary) == 0
        assert PLAIN.filtered(TagsFilter(key="k", cmp="ex")).publications([binary])


async def test_a_plain_subscriber_is_answered_with_what_gathered(node: Node) -> None:
    """Publications that gather while it joins are binary messages, too."""
    transport = MemoryTransport(PLAIN_ASGI)
    async with connect(node, transport, ["bin:c"]), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(node.publish, Publication("bin:c", ANY))
        await wait_all_tasks_blocked()
    assert transport.messages() == 3 * [ANY]
