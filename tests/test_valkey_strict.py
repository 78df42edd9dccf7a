"""`engine_failover`: what another primary means for streams, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from repeater.brokers.contract import Broker
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.publication import Publication, Rupture, StreamPosition
from repeater.testing.broker_bench import LASTING, Bench, running
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program, "--appendonly", "yes", "--appendfsync", "always") as one:
        yield one


@asynccontextmanager
async def bench_of(server: ValkeyServer, *, strict: bool) -> AsyncIterator[Bench]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield ValkeyBroker(open_servers([parse_url(server.unix_url)]), strict=strict)

    async with running(opened, options=LASTING) as bench:
        bench.channel = "c"
        yield bench


async def replace_primary(server: ValkeyServer, bench: Bench) -> None:
    """Restart it: all its data is there, and it is another primary by its replication id."""
    before = server.call("INFO", "replication")
    server.kill()
    with trio.fail_after(LOOP_ANSWERS):
        while not bench.broker.outage():  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
        server.start()
        while bench.broker.outage():  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
    assert server.call("INFO", "replication") != before


async def top(bench: Bench) -> StreamPosition:
    _, position = await bench.history(limit=0)
    return position


async def test_a_stream_goes_on(server: ValkeyServer) -> None:
    """By default, since nothing of it is missing."""
    async with bench_of(server, strict=False) as bench:
        before = await bench.numbered(b"1")
        await replace_primary(server, bench)
        after = await bench.numbered(b"2")
        assert after == StreamPosition(2, before.epoch)


async def test_a_stream_begins_anew(server: ValkeyServer) -> None:
    """With `strict`, though nothing of it is missing; later ones of this primary go on."""
    async with bench_of(server, strict=True) as bench:
        before = await bench.numbered(b"1")
        assert before == await top(bench)
        assert await bench.numbered(b"2") == StreamPosition(2, before.epoch)
        await replace_primary(server, bench)
        after = await bench.numbered(b"3")
        assert (after.offset, len(after.epoch) <= 32) == (1, True)
        assert after.epoch != before.epoch
        assert await bench.numbered(b"4") == StreamPosition(2, after.epoch) == await top(bench)


async def test_a_fork_is_not_told_twice(server: ValkeyServer) -> None:
    """The epoch that a fork gets is one of this primary: the stream goes on in it."""
    async with bench_of(server, strict=True) as bench:
        broker, before = bench.broker, await bench.numbered(b"1")
        assert isinstance(broker, ValkeyBroker)
        await broker._engine.fork("c", before.epoch).wait()
        forked = await top(bench)
        assert (forked.offset, forked.epoch != before.epoch) == (1, True)
        assert await bench.numbered(b"2") == StreamPosition(2, forked.epoch)


async def test_who_reads_first_finds_a_new_stream(server: ValkeyServer) -> None:
    """A client that comes back after a failover is told, also if nobody has published since."""
    async with bench_of(server, strict=True) as bench:
        before = await bench.numbered(b"1")
        await replace_primary(server, bench)
        page, position = await bench.history(since=before)
        assert (list(page), position.offset) == ([], 0)
        assert position.epoch != before.epoch
        assert await bench.numbered(b"2") == StreamPosition(1, position.epoch)


async def test_listeners_are_told(server: ValkeyServer) -> None:
    """Whoever hears the channel on a node learns that its stream has begun anew."""
    async with bench_of(server, strict=True) as bench:
        await bench.numbered(b"1")
        (first,) = await bench.handed_on(1)
        assert isinstance(first, Publication)
        await replace_primary(server, bench)
        await bench.numbered(b"2")
        with trio.fail_after(LOOP_ANSWERS):
            (told,) = await bench.handed_on(1)
        assert isinstance(told, Rupture)
