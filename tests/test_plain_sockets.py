"""Envelopes and `since` on real sockets: natively, behind the ASGI server, inside HTTP/2."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
import trio
from websockets.frames import Opcode

from repeater.errors import FORCE_DISCONNECT
from repeater.publication import Publication
from repeater.serving.server import Server
from tests.deadlines import LOOP_ANSWERS
from tests.eventsource import EventSource
from tests.http_streams import Peer, peer
from tests.serving import UPGRADE, connected, frame, running
from tests.signing import SECRET, sign
from tests.websocket_ways import WebSocket, every_way, websocket

ENDS = ("native", "asgi")
every_end = pytest.mark.parametrize("end", ENDS)
OFFER = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


async def publish(server: Server, channel: str, *data: object) -> None:
    for one in data:
        await server.node.publish(Publication(channel, json.dumps(one).encode()))


async def message(client: WebSocket) -> dict[str, object]:
    """The next text message; a ping is answered."""
    while True:
        while len(client.received) < 2 or len(client.received) < 4 <= 126 - client.received[1]:
            await client.read()
        size, begin = client.received[1], 2
        if size == 126:
            size, begin = int.from_bytes(client.received[2:4], "big"), 4
        while len(client.received) < begin + size:
            await client.read()
        opcode, payload = client.received[0] & 0x0F, client.received[begin : begin + size]
        client.received = client.received[begin + size :]
        if opcode == Opcode.TEXT:
            found = json.loads(payload)
            assert isinstance(found, dict)
            return found
        assert opcode == Opcode.PING
        await client.send(frame(b"", 10))


@every_way
async def test_a_websocket_begins_at_the_start_and_comes_back(way: str) -> None:
    """Envelopes with all that a client needs; the last id as `since` goes on exactly there."""
    async with running() as server:
        await publish(server, "a", 1)
        path = "/ws?channel=a&channel=b&since="
        async with websocket(server, way, f"{path}start") as client:
            assert list(await message(client)) == ["id"]
            event = await message(client)
            members = ["id", "channel", "offset", "epoch", "time", "data"]
            assert list(event) == members
            assert (event["channel"], event["offset"], event["data"]) == ("a", 1, 1)
            await server.node.publish(Publication("b", b'{"n": 2}', tags={"k": "v"}))
            event = await message(client)
            assert (event["channel"], event["tags"]) == ("b", {"k": "v"})
            assert event["data"] == {"n": 2}
        await publish(server, "a", 3)
        async with websocket(server, way, path + quote(str(event["id"]))) as client:
            assert list(await message(client)) == ["id"]
            assert (await message(client))["data"] == 3


@every_way
async def test_what_is_lost_is_a_message_of_its_own(way: str) -> None:
    """Not to be taken for an event: it has no channel, but the names of those that are lost."""
    async with running(channel={"history_size": 2, "history_ttl": 60}) as server:
        await publish(server, "a", 1, 2, 3)
        async with websocket(server, way, "/ws?channel=a&since=start") as client:
            found = await message(client)
            assert found.keys() == {"id", "reset"}
            assert found["reset"] == {"channels": ["a"]}
            assert [(await message(client))["data"] for _ in range(2)] == [2, 3]


@every_way
async def test_binary_data_is_text_in_an_envelope(way: str) -> None:
    """Beside JSON of other channels; without envelopes it stays a binary frame."""
    path = "/ws?channel=a&channel=bytes:a&envelope=1"
    async with (
        running(namespaces={"bytes": {"publication_data_format": "binary"}}) as server,
        websocket(server, way, path) as client,
    ):
        await message(client)
        await server.node.publish(Publication("bytes:a", b"\0\xff"))
        event = await message(client)
        assert (event["channel"], event["b64data"]) == ("bytes:a", "AP8=")
        assert "data" not in event


@every_way
async def test_an_end_is_told_twice(way: str) -> None:
    """As the last message, and by the code of the close frame."""
    async with running() as server, websocket(server, way, "/ws?channel=a&envelope=1") as client:
        await message(client)
        (one,) = server.node.registry.clients
        one.disconnect(FORCE_DISCONNECT)
        assert await message(client) == {"disconnect": {"code": 3503, "reason": "force disconnect"}}
        assert b"\x0d\xafforce disconnect" in await client.rest()


@every_way
async def test_envelopes_are_not_compressed(way: str) -> None:
    """The offer is not accepted; a plain WebSocket's is, where the server compresses."""
    async with running(compression=True) as server:
        for path, accepted in (
            ("/ws?channel=a&envelope=1", False),
            ("/ws?channel=a&since=start", False),
            ("/ws?channel=a", way == "native"),
        ):
            async with websocket(server, way, path, OFFER) as client:
                assert (b"permessage-deflate" in client.head) is accepted


@every_end
async def test_a_stream_has_envelopes_and_goes_on(end: str) -> None:
    """The address stays the same: `Last-Event-ID` wins over `since=start`."""
    async with running() as server:
        await publish(server, "a", 1)
        source = EventSource()
        target = "/events?channel=a&channel=b&since=start&envelope=1"
        for number in (2, 3):
            async with peer(server, end) as client:
                last = {"Last_Event_ID": source.last_event_id} if source.last_event_id else {}
                await client.request("GET", target, **last)
                await publish(server, "b", number)
                source.feed(await client.until(b'"data":%d}\n\n' % number))
        events = [json.loads(data) for data in source.data()]
        assert [(one["channel"], one["data"]) for one in events] == [("a", 1), ("b", 2), ("b", 3)]
        assert [one["id"] for one in events] == [one.last_event_id for one in source.events]
        async with peer(server, end) as client:
            await client.request("GET", f"{target}&lastEventId={quote(source.last_event_id)}")
            await publish(server, "a", 4)
            assert b'"data":1}' not in await client.until(b'"data":4}\n\n')


@every_end
async def test_a_stream_without_envelopes_begins_in_the_past(end: str) -> None:
    """The data alone, as ever."""
    async with running() as server:
        await publish(server, "a", 1, 2)
        async with peer(server, end) as client:
            await client.request("GET", "/events?channel=a&since=last:1")
            assert b"data: 1\n" not in await client.until(b"\ndata: 2\n\n")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("since=yesterday", b"since is one of: start, last:20, time:2026-11-25T20:00:00Z, or"),
        ("since=time:9999999", b"since is one of"),
        ("since=last:-1", b"since is one of"),
        ("envelope=yes", b"envelope must be 0 or 1"),
    ],
)
@pytest.mark.parametrize("path", ["/events", "/ws"])
@every_end
async def test_what_is_malformed_is_refused(end: str, path: str, query: str, text: bytes) -> None:
    """With 400, and a sentence that names the right forms."""
    async with running() as server:
        assert text in await refusal(server, end, f"{path}?channel=a&{query}")
        assert server.node.statistics().clients == 0


@every_end
async def test_a_websocket_has_no_past_without_envelopes(end: str) -> None:
    """What is missing could not be said there."""
    async with running() as server:
        found = await refusal(server, end, "/ws?channel=a&envelope=0&since=start")
        assert b"since needs envelope=1" in found


async def refusal(server: Server, end: str, target: str) -> bytes:
    """The text of the answer 400."""
    if target.startswith("/events"):
        async with peer(server, end) as client:
            status, found = await client.call("GET", target)
            assert status == 400
            return found
    async with connected(server) as stream:
        client = Peer(stream)
        if end == "asgi":
            assert (await client.call("GET", "/health"))[0] == 200
        await stream.send_all(UPGRADE.format(path=target, more="").encode())
        response = await client.event()
        assert response.status_code == 400
        return await client.rest()


@every_end
async def test_whoever_was_accepted_can_come_back_by_since(end: str) -> None:
    """A WebSocket of many channels is resumed with its last id in the place of `start`."""
    names = [f"{number:0255}" for number in range(56)]
    path = "/ws?" + "&".join(f"channel={name}" for name in names) + "&since="
    async with running(channel={"channel_regex": ".+"}) as server:
        async with websocket(server, end, f"{path}start") as client:
            last = (await message(client))["id"]
            for name in names:
                await publish(server, name, 1)
                last = (await message(client))["id"]
        await publish(server, names[7], 2)
        async with websocket(server, end, path + quote(str(last))) as client:
            assert list(await message(client)) == ["id"]
            assert (await message(client))["channel"] == names[7]


@every_way
async def test_a_token_says_the_channels(way: str) -> None:
    """Those that a token grants begin in the past as well; personal and public ones, too."""
    settings = {
        "dev": False,
        "token": {"hmac_secret_key": SECRET},
        "public_channels": ["open"],
        "allowed_hosts": [],
        "channel": {"history_size": 5, "history_ttl": 60, "allow_recovery": True},
        "namespaces": {"kept": {"history_size": 5, "history_ttl": 60, "force_recovery": True}},
    }
    token = sign({"sub": "42", "subs": {"#42": {}, "kept:1": {}}})
    async with running(**settings) as server:
        for name in ("#42", "kept:1", "open"):
            await publish(server, name, name)
        path = f"/ws?token={token}&since=start"
        async with websocket(server, way, path) as client:
            assert list(await message(client)) == ["id"]
            assert [(await message(client))["data"] for _ in range(2)] == ["#42", "kept:1"]
        async with websocket(server, way, "/ws?channel=open&since=start") as client:
            assert list(await message(client)) == ["id"]
            assert (await message(client))["data"] == "open"


@every_way
async def test_a_hang_up_is_noticed(way: str) -> None:
    """Whoever closes the socket is gone from the node, and so are its shared positions."""
    async with running() as server:
        async with websocket(server, way, "/ws?channel=a&channel=b&envelope=1") as client:
            await message(client)
            assert len(server.node.position_sets) == 1
        with trio.fail_after(LOOP_ANSWERS):
            while server.node.registry.clients:  # noqa: ASYNC110  # nobody tells
                await trio.sleep(0.01)
        assert len(server.node.position_sets) == 0
