"""Shards: independent servers that share the channels."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import trio

from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, packed
from repeater.valkey.servers import answer_from
from repeater.valkey.shards import jump, shard_of
from repeater.valkey.slots import PARTITIONS
from repeater.valkey.url import parse_url
from tests.processes import starts_processes
from tests.valkey_clusters import cluster
from tests.valkey_connections import Heard, States, key_in
from tests.valkeys import REDIS, VALKEY, valkey

CHANNELS = [f"channel:{number}" for number in range(10_000)]


def test_the_shard_of_a_channel_is_that_of_all_versions() -> None:
    """Another version must look for a stream where this one has put it."""
    assert [shard_of(channel, 5) for channel in ("news", "chat:1", "ü")] == [4, 2, 2]
    assert shard_of("news", 1) == 0


def test_it_is_the_jump_hash_of_others() -> None:
    """Examples of other implementations."""
    assert [jump(1, 1), jump(42, 57), jump(0xDEAD10CC, 666), jump(256, 1024)] == [0, 43, 361, 520]


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_one_shard_more_takes_its_part_of_each(shards: int) -> None:
    """Shards are equal within 10 %, and a channel moves to the new one, or not at all."""
    before = [shard_of(channel, shards) for channel in CHANNELS]
    after = [shard_of(channel, shards + 1) for channel in CHANNELS]
    for number in Counter(before).values():
        assert number == pytest.approx(len(CHANNELS) / shards, rel=0.1)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {shards}
    assert len(moved) == pytest.approx(len(CHANNELS) / (shards + 1), rel=0.1)


async def test_each_shard_has_its_channels_and_goes_alone() -> None:
    """Keys and messages are on the shard of their partition; one that is down is down alone."""
    states, told = States(), Heard()
    heard = [Heard(), Heard()]
    with valkey(VALKEY) as one, valkey(REDIS) as two:
        servers = open_servers([parse_url(one.url), parse_url(two.url)])
        servers.add(states)
        assert servers.partitions == 2
        assert {servers.partition_of(channel) for channel in CHANNELS} == {0, 1}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.run)
            await states.wait(up=2)
            for number in range(2):
                servers.subscribe(number, {b"channel": heard[number]}, told)
                assert await answer_from(servers, number, "SET", "key", number) == b"OK"
            await told.wait(None, None)
            assert (one.call("GET", "key"), two.call("GET", "key")) == (b"0", b"1")
            two.call("PUBLISH", "channel", "x")
            await heard[1].wait(b"x")
            two.kill()
            await states.wait(up=1)
            assert servers.outage().startswith("1 of 2 shards: ")
            assert servers.why(0) == ""
            with pytest.raises(Lost):
                servers.ask(1, packed("PING"), told)
            assert await answer_from(servers, 0, "GET", "key") == b"0"
            servers.unsubscribe(0, [b"channel"])
            statistics = servers.statistics()
            assert (statistics.primaries, statistics.up) == (2, 1)
            nursery.cancel_scope.cancel()
        assert heard[0].all == []


@starts_processes
async def test_a_cluster_and_a_single_server_are_shards_of_one_engine() -> None:
    """All of them use sharded channels then."""
    states, told = States(), Heard()
    with ExitStack() as stack:
        single, many = stack.enter_context(valkey()), stack.enter_context(cluster())
        servers = open_servers([parse_url(single.url), parse_url(many.url)])
        servers.add(states)
        assert servers.partitions == PARTITIONS + 1
        assert servers.publish == b"SPUBLISH"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.run)
            await states.wait(up=PARTITIONS + 1)
            for partition in (0, 1, 64, 128):
                heard = Heard()
                channel = key_in(servers, partition, "channel")
                servers.subscribe(partition, {channel: heard}, told)
                await told.wait_number(1)
                await answer_from(servers, partition, servers.publish.decode(), channel, "x")
                await heard.wait(b"x")
                told.all.clear()
            nursery.cancel_scope.cancel()
