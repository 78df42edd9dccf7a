"""Every SDK on who is there: presence, and who comes and goes."""

from __future__ import annotations

import pytest

from repeater.options import ChannelOptions
from tests.sdk.harness import SDK, CallError, running

pytestmark = pytest.mark.sdk

SEEN = ChannelOptions(presence=True, join_leave=True, force_push_join_leave=True)


async def test_presence_tells_who_is_there(sdk: SDK) -> None:
    """Both clients are in it, then only the one that stayed."""
    async with running(channel=SEEN) as server, sdk.client(server, connect=False) as client:
        await client.call("connect")
        own = (await client.heard("connected"))["id"]
        await client.subscribe("room")
        async with sdk.client(server) as other:
            await other.subscribe("room")
            present = await client.call("presence", channel="room")
            assert len(present) == 2
            assert present[own]["client"] == own
            stats = await client.call("presence_stats", channel="room")
            assert stats == {"num_clients": 2, "num_users": 1}
            for _ in range(2):  # A join that is not announced yet would take the leave away.
                await client.heard("join", "room")
            await other.call("unsubscribe", channel="room")
            await client.heard("leave", "room")
            assert [*await client.call("presence", channel="room")] == [own]


async def test_presence_where_it_is_off(sdk: SDK) -> None:
    """Both calls raise 108."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("room")
        for call in ("presence", "presence_stats"):
            with pytest.raises(CallError) as caught:
                await client.call(call, channel="room")
            assert caught.value.code == 108


async def test_coming_and_going_is_told(sdk: SDK) -> None:
    """A subscriber hears itself join, then another, and that one's leave by its disconnect."""
    async with running(channel=SEEN) as server, sdk.client(server, connect=False) as client:
        await client.call("connect")
        own = (await client.heard("connected"))["id"]
        await client.subscribe("room")
        assert (await client.heard("join", "room"))["info"]["client"] == own
        async with sdk.client(server, connect=False) as other:
            await other.call("connect")
            its = (await other.heard("connected"))["id"]
            await other.subscribe("room")
            assert (await client.heard("join", "room"))["info"]["client"] == its
        assert (await client.heard("leave", "room"))["info"]["client"] == its


async def test_joins_go_to_those_who_ask(sdk: SDK) -> None:
    """Not forced: who asks hears them, who does not ask hears nothing of them."""
    asked = ChannelOptions(presence=True, join_leave=True)
    async with (
        running(channel=asked) as server,
        sdk.client(server) as quiet,
        sdk.client(server) as curious,
    ):
        await quiet.subscribe("room")
        await curious.subscribe("room", join_leave=True)
        await curious.heard("join", "room")
        await curious.call("publish", channel="room", data=1)
        assert await quiet.data("room", 1) == [1]
        assert not quiet.waiting("join")
