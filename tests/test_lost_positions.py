"""Recovery that failed is one line of the log: the channel, what was asked for, and why not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import SubscriptionGrant
from repeater.clients.joining import server_side_wish
from repeater.clients.lost_positions import why_lost
from repeater.clients.openings import GrantedChannel, open_subscriptions
from repeater.clients.replay import Replay
from repeater.fanout.recovery import Joined, after_drop
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import Publication, Rupture, StreamPosition
from repeater.testing import MemoryTransport, UnixClock, connect
from tests.conversation import talking
from tests.plain_readers import WAYS, Reader
from tests.refusing import RefusedLines

every_way = pytest.mark.parametrize("way", WAYS)

FEW = ChannelOptions(
    history_size=3,
    history_ttl=60.0,
    allow_recovery=True,
    allow_subscribe_for_client=True,
    allow_subscribe_for_anonymous=True,
)
replace = msgspec.structs.replace
OPTIONS = NodeOptions(
    allow_anonymous=True,
    channel=FEW,
    namespaces={
        "many": replace(FEW, history_size=100),
        "none": replace(FEW, history_size=0),
        "shut": replace(FEW, allow_recovery=False),
        "cache": replace(FEW, force_recovery_mode="cache", auto_cache_recover=True),
        "newest": replace(FEW, force_recovery_mode="cache"),
    },
    recovery_limit=5,
    outbox_limit=20_000,
)


async def publish(node: Node, channel: str, count: int, size: int = 1) -> None:
    for _ in range(count):
        await node.publish(Publication(channel, b'"' + b"x" * size + b'"'))
    await wait_all_tasks_blocked()


async def epoch_of(node: Node, channel: str) -> str:
    _, top = await node.history(channel, limit=0)
    return top.epoch


async def come_back(node: Node, channel: str, offset: int, epoch: str = "", flag: int = 0) -> Any:
    """The answer to an SDK's client that was at this position."""
    async with talking(node) as talk:
        return await talk.subscribe(
            channel, recoverable=True, recover=True, offset=offset, epoch=epoch, flag=flag
        )


@pytest.mark.parametrize(
    ("channel", "published", "since", "text", "mend"),
    [
        (
            "a",
            (1, 1),
            (1, "old"),
            "the stream has begun anew: epoch ",
            "keep histories over a restart: see data_dir, engine and history_meta_ttl",
        ),
        ("a", (1, 1), (9, ""), "it is at offset 9, and the stream ends at 1", "durability"),
        (
            "a",
            (10, 1),
            (1, ""),
            "what came after offset 1 is not all kept (now at 10)",
            "raise history_size and history_ttl in [channel]",
        ),
        (
            "many:a",
            (10, 1),
            (1, ""),
            "it missed 9, more than recovery_limit (5)",
            "raise recovery_limit",
        ),
        (
            "many:a",
            (4, 6_000),
            (0, ""),
            "what it asks for is more than half of outbox_limit (10000 bytes)",
            "raise outbox_limit",
        ),
        (
            "none:a",
            (1, 1),
            (1, ""),
            "the channel keeps no history",
            "set history_size and history_ttl in [namespaces.none]",
        ),
        (
            "shut:a",
            (1, 1),
            (1, ""),
            "the client may not recover in the channel, or did not ask for it",
            "set force_recovery = true, or allow_recovery = true, in [namespaces.shut]",
        ),
    ],
    ids=lambda one: str(one)[:20],
)
async def test_what_an_sdk_cannot_get(
    channel: str,
    published: tuple[int, int],
    since: tuple[int, str],
    text: str,
    mend: str,
    autojump_clock: MockClock,
    refused: RefusedLines,
) -> None:
    """It is told `recovered: false`, as always, and the line has the setting."""
    async with open_node(OPTIONS) as node:
        await publish(node, channel, *published)
        told = await come_back(node, channel, *since)
        assert "code" not in told
        assert not told.get("recovered", False)
        assert node.refusals.counts == {"recovery": 1}
    line = refused.one()
    assert line.startswith("refused what=recover cause=recovery")
    assert text in line
    assert mend in line
    assert f"channel={channel}" in line


@pytest.mark.parametrize("channel", ["a", "newest:a"])
async def test_a_history_that_has_expired(
    channel: str, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """Nothing of it is kept: the line is that of a short history."""
    async with open_node(OPTIONS, now=UnixClock()) as node:
        await publish(node, channel, 2)
        epoch = await epoch_of(node, channel)
        await trio.sleep(70)
        await come_back(node, channel, 1, epoch)
    assert "what came after offset 1 is not all kept (now at 2)" in refused.one()


async def test_an_error_in_place_of_recovered_false(
    autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """A client that wants error 112 is one line, too: the command's."""
    async with open_node(OPTIONS) as node:
        await publish(node, "a", 1)
        assert (await come_back(node, "a", 9, flag=2))["code"] == 112
        assert node.refusals.counts == {"recovery": 1}
    line = refused.one()
    assert "what=subscribe cause=recovery why='it is at offset 9, and the stream" in line
    assert "code=112" in line


async def test_who_gets_everything_leaves_no_line(
    autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """Nor does who misses nothing, as the stream is empty, or who has asked for nothing."""
    async with open_node(OPTIONS) as node:
        await publish(node, "a", 2)
        assert (await come_back(node, "a", 1))["recovered"] is True
        await come_back(node, "newest:a", 0)
        async with talking(node) as talk:
            assert not (await talk.subscribe("cache:a", recoverable=True)).get("recovered", False)
            await talk.subscribe("b", recoverable=True)
    assert refused.all() == []


@pytest.mark.parametrize(("channel", "code"), [("a", 2500), ("", 3010)])
async def test_a_position_that_is_lost_while_it_is_live(
    channel: str, code: int, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """A subscription that was asked for (2500), and one that is the server's (3010)."""
    async with open_node(OPTIONS) as node, talking(node) as talk:
        if channel:
            await talk.subscribe("a", recoverable=True, positioned=True)
        else:
            await node.subscribe("", "a")
            await wait_all_tasks_blocked()
        node._intake.put_nowait(Rupture("a"))
        await wait_all_tasks_blocked()
        assert node.refusals.counts == {"recovery": 1}
        assert (talk.client.end is None) is bool(channel)
    line = refused.one()
    assert "what=position cause=recovery why='publications of the channel did not reach" in line
    assert f"code={code} channel=a" in line


@every_way
async def test_a_reset_after_an_unknown_id(
    way: str, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """A plain client that comes back with other channels is told `reset`, each is one line."""
    async with open_node(OPTIONS) as node:
        await publish(node, "a", 1)
        reader = Reader(way, "a")
        async with reader.connected(node):
            pass
        reader.channels = ("a", "b")
        async with reader.connected(node):
            assert reader.read() == [("a", "b")]
    assert len(refused.all()) == 2
    assert all("why='its id is not one of these channels'" in line for line in refused.all())


@every_way
async def test_a_start_that_is_not_kept(
    way: str, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """Who asks for all of a stream gets what there is, and the line says what would keep more."""
    async with open_node(OPTIONS) as node:
        await publish(node, "a", 5)
        reader = Reader(way, "a", since="start")
        async with reader.connected(node):
            assert reader.read() == [("a",), "x", "x", "x"]
    line = refused.one()
    assert "older publications are not kept, or are more than recovery_limit (5)" in line
    assert "raise history_size and history_ttl in [channel], and recovery_limit" in line


async def test_a_replay_that_grows_too_large(autojump_clock: MockClock) -> None:
    """What was recovered and is not sent in the end is lost as well."""
    async with open_node(OPTIONS) as node, connect(node, MemoryTransport(EVENT_STREAM)) as client:
        await publish(node, "a", 2)
        wish = server_side_wish(StreamPosition(0, await epoch_of(node, "a")))
        channels = [GrantedChannel("a", SubscriptionGrant(), wish)]
        (joining,) = await open_subscriptions(node, client, channels)
        assert joining.why_lost() is None
        replay = Replay(EVENT_STREAM, [joining], ("a",), {"a"}, 10)
        await replay.prepare(node.turns.give_way)
        assert b"reset" in b"".join(replay.finish())
        why = joining.why_lost()
        assert why is not None
        assert "more than half of outbox_limit" in why.text


async def test_too_much_is_published_meanwhile() -> None:
    """What gathered was dropped before the subscriber went live; the history had all of it."""
    async with open_node(OPTIONS) as node, connect(node, MemoryTransport(EVENT_STREAM)) as client:
        since = StreamPosition(1, "e")
        channels = [GrantedChannel("a", SubscriptionGrant(), server_side_wish(since))]
        (joining,) = await open_subscriptions(node, client, channels)
        recovered = Joined((), since, recovered=True)
        assert after_drop(recovered, since) is recovered
        lost = after_drop(recovered, StreamPosition(3, "e"))
        why = why_lost(node, joining.subscription, lost, since)
        assert (
            why.text
            == "what was published meanwhile is more than half of outbox_limit (10000 bytes)"
        )
        assert why.mend == "raise outbox_limit"
