"""Every SDK on binary channels: any bytes with Protobuf, a refusal with JSON."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from repeater.errors import NO_PONG
from repeater.options import ChannelOptions
from repeater.publication import Publication
from repeater.serving.server import Server
from tests.sdk.clients import JSON, PROTOBUF
from tests.sdk.harness import SDK, CallError, Peer, only_client, running
from tests.working import Workers

pytestmark = pytest.mark.sdk

FRAMES: dict[str, Any] = {
    "namespaces": {
        "frames": ChannelOptions(
            publication_data_format="binary",
            history_size=100,
            history_ttl=60,
            force_recovery=True,
            allowed_delta_types=frozenset({"fossil"}),
            delta_publish=True,
        )
    }
}
BYTES = [b"\xff\x00\n", bytes(range(256)) * 20, b"\x80", bytes(reversed(range(256))) * 200]

protobuf = pytest.mark.parametrize("driver", PROTOBUF, indirect=True)
json = pytest.mark.parametrize("driver", JSON, indirect=True)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def frames(client: Peer, count: int) -> list[bytes]:
    """The bytes of the next publications."""
    heard = [await client.heard("publication", "frames:1") for _ in range(count)]
    return [base64.b64decode(one["b64data"]) for one in heard]


async def publish(server: Server | Workers, *data: bytes) -> None:
    for one in data:
        await server.node.publish(Publication("frames:1", one))


@protobuf
async def test_any_bytes(sdk: SDK) -> None:
    """Published by a back end and by the client itself, read from the history, recovered."""
    async with running(**FRAMES) as server, sdk.client(server) as client:
        await client.subscribe("frames:1")
        await publish(server, *BYTES)
        assert await frames(client, 4) == BYTES
        await client.call("publish", channel="frames:1", b64data=encoded(b"\xfe own"))
        assert await frames(client, 1) == [b"\xfe own"]
        history = await client.call("history", channel="frames:1", options={"limit": 2})
        assert [one["b64data"] for one in history["publications"]] == [*map(encoded, BYTES[:2])]
        only_client(server).cut(NO_PONG)
        await publish(server, *BYTES)
        await client.heard("connected")
        await publish(server, b"\xfd last")
        assert await frames(client, 5) == [*BYTES, b"\xfd last"]


@protobuf
@pytest.mark.needs("deltas")
async def test_differences_of_bytes(sdk: SDK) -> None:
    """They are cut anywhere, and put together to the same bytes, recovered ones too."""
    values = [b"\xc3" + bytes(range(256)) * 8 + bytes([count, 0xA9]) for count in range(8)]
    async with running(**FRAMES) as server, sdk.client(server) as client:
        await client.subscribe("frames:1", delta="fossil")
        await publish(server, *values[:4])
        assert await frames(client, 4) == values[:4]
        only_client(server).cut(NO_PONG)
        await publish(server, *values[4:6])
        await client.heard("connected")
        await publish(server, *values[6:])
        assert await frames(client, 4) == values[4:]


@protobuf
async def test_bytes_where_json_is_asked_for(sdk: SDK) -> None:
    """107 in a channel of JSON; the connection goes on, and JSON arrives."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        with pytest.raises(CallError) as caught:
            await client.call("publish", channel="news", b64data=encoded(b"\xff"))
        assert caught.value.code == 107
        await client.call("publish", channel="news", data={"n": 1})
        assert await client.data("news", 1) == [{"n": 1}]


@json
async def test_clients_of_json_are_refused(sdk: SDK) -> None:
    """108 at subscribe, publish and history, and the connection goes on."""
    async with running(**FRAMES) as server, sdk.client(server) as client:
        await client.call("subscribe", channel="frames:1", options={})
        assert (await client.heard("unsubscribed", "frames:1"))["code"] == 108
        for call, arguments in (("publish", {"data": 1}), ("history", {"options": {"limit": 1}})):
            with pytest.raises(CallError) as caught:
                await client.call(call, channel="frames:1", **arguments)
            assert caught.value.code == 108
        await client.subscribe("news")
