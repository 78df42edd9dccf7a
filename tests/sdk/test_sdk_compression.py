"""Every SDK with permessage-deflate: each negotiates it, and gets the same data as without it."""

from __future__ import annotations

from typing import Any

import pytest

from repeater.errors import NO_PONG
from repeater.options import ChannelOptions
from tests.sdk.harness import SDK, only_client, publish, running

pytestmark = pytest.mark.sdk

KEPT = ChannelOptions(
    history_size=100,
    history_ttl=60,
    force_recovery=True,
    allowed_delta_types=frozenset({"fossil"}),
    delta_publish=True,
)
COMPRESSED: dict[str, Any] = {"settings": {"compression": True}, "channel": KEPT}
TEXT = "as a rule, a text that says the same again and again becomes shorter. "
VALUES = [{"n": count, "é": TEXT * (count * count)} for count in range(12)]


async def test_compressed_messages(sdk: SDK) -> None:
    """In both directions, short ones and long ones, live and recovered."""
    async with running(**COMPRESSED) as server, sdk.client(server) as client:
        assert only_client(server).codec.compresses
        await client.subscribe("news")
        await publish(server, "news", *VALUES)
        assert await client.data("news", len(VALUES)) == VALUES
        await client.call("publish", channel="news", data=VALUES[5])
        assert await client.data("news", 1) == [VALUES[5]]
        only_client(server).cut(NO_PONG)
        await publish(server, "news", *VALUES)
        await client.heard("connected")
        await publish(server, "news", "live")
        assert await client.data("news", len(VALUES) + 1) == [*VALUES, "live"]


@pytest.mark.needs("deltas")
async def test_deltas_in_compressed_frames(sdk: SDK) -> None:
    """What a delta has left is compressed, too."""
    async with running(**COMPRESSED) as server, sdk.client(server) as client:
        await client.subscribe("news", delta="fossil")
        await publish(server, "news", *VALUES)
        assert await client.data("news", len(VALUES)) == VALUES
