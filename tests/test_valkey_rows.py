"""Rows of other databases in an engine that several nodes share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from repeater.brokers.contract import Broker, Outcome
from repeater.brokers.receipts import settled
from repeater.brokers.source_rows import AfterError, DeposedError, SourceRow
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.errors import BrokerError
from repeater.publication import Publication
from repeater.testing.broker_bench import LASTING, Bench, data_of, running
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey

pytestmark = pytest.mark.timeout(60)

KEY = "repeater:r:db"
BARE = msgspec.structs.replace(LASTING, history_size=0)


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as one:
        yield one


@asynccontextmanager
async def nodes(server: ValkeyServer, count: int = 1) -> AsyncIterator[Sequence[Bench]]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield ValkeyBroker(open_servers([parse_url(server.unix_url)], timeout=LOOP_ANSWERS))

    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(running(opened)) for _ in range(count)]
        for one in found:
            one.channel = "c"
        yield found


def row(name: str, *, term: int = 1, after: str = "") -> SourceRow:
    return SourceRow("db", term, name, after)


async def publish(bench: Bench, which: SourceRow, data: bytes = b"1") -> Outcome:
    await bench.hold()
    return await settled(await bench.submit(Publication("c", data), row=which))


async def test_another_node_finds_a_row_published(server: ValkeyServer) -> None:
    """Who leads next, on another node, gets the first result, and reads which rows are known."""
    async with nodes(server, 2) as (one, other):
        first = await publish(one, row("a"))
        assert await publish(other, row("a", term=2)) == first
        assert await settled(other.broker.known_rows("db")) == ["a"]
        assert data_of((await other.history())[0]) == [b"1"]


async def test_who_led_before_is_deposed(server: ValkeyServer) -> None:
    """A node that was stopped while another one took the lead publishes nothing any more."""
    async with nodes(server, 2) as (one, other):
        await publish(one, row("a", term=7))
        await publish(other, row("b", term=8))
        with pytest.raises(DeposedError) as caught:
            await publish(one, row("c", term=7))
        assert caught.value.term == 8
        assert server.call("HGET", KEY, "c") is None


async def test_a_failure_takes_those_behind_it_with_it(server: ValkeyServer) -> None:
    """Rows of one script, each behind the one before: if the first fails, none is published."""
    async with nodes(server) as (bench,):
        await bench.hold()
        answers = [
            await bench.submit(Publication("c", b"1"), row=row(name, after=after))
            for name, after in (("b", "a"), ("c", "b"), ("d", "c"))
        ]
        for answer in answers:
            with pytest.raises(AfterError):
                await settled(answer)
        assert await settled(bench.broker.known_rows("db")) == []


@pytest.mark.parametrize("options", [LASTING, BARE], ids=["history", "bare"])
async def test_a_full_engine_publishes_no_row(server: ValkeyServer, options: object) -> None:
    """Without memory nothing of a row happens, also where no history is kept: it comes again."""
    async with nodes(server) as (bench,):
        bench.options = options  # type: ignore[assignment]  # a parameter
        await bench.hold()
        server.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BrokerError, match="OOM"):
            await publish(bench, row("a"), b"1")
        server.call("CONFIG", "SET", "maxmemory", "0")
        assert await settled(bench.broker.known_rows("db")) == []
        await publish(bench, row("a"), b"2")
        assert data_of(await bench.handed_on(1)) == [b"2"]


async def test_rows_have_no_end_of_life(server: ValkeyServer) -> None:
    """Only `forget_rows` removes them; the term is kept behind the last one."""
    async with nodes(server) as (bench,):
        await publish(bench, row("a", term=5))
        assert server.call("TTL", KEY) == -1
        await settled(bench.broker.forget_rows("db", ["a"]))
        assert server.call("HGET", KEY, "") == b"5"
        assert server.call("HLEN", KEY) == 1


async def test_a_row_may_have_any_name(server: ValkeyServer) -> None:
    """No name is taken for the term."""
    async with nodes(server) as (bench,):
        for name in ("t", "e", "0", "ä"):
            await publish(bench, row(name))
        known: Sequence[str] = await settled(bench.broker.known_rows("db"))
        assert sorted(known) == ["0", "e", "t", "ä"]


async def test_a_key_that_is_not_ours(server: ValkeyServer) -> None:
    """A key of another type, or fields that no node has written, hold no row up."""
    async with nodes(server) as (bench,):
        server.call("SET", KEY, "x")
        assert await settled(bench.broker.known_rows("db")) == []
        await settled(bench.broker.forget_rows("db", ["a"]))
        assert await publish(bench, row("a"))
        server.call("HSET", KEY, "", "a" * 99, "b", "what")
        assert await publish(bench, row("b")) is None
        assert await publish(bench, row("c"))


async def test_a_lost_engine(server: ValkeyServer) -> None:
    """Without the engine rows are neither read nor forgotten, and whoever asks is told."""
    async with nodes(server) as (bench,):
        await publish(bench, row("a"))
        server.kill()
        for _ in range(2):
            with pytest.raises(BrokerError):
                await settled(bench.broker.forget_rows("db", ["a"]))
            with pytest.raises(BrokerError):
                await settled(bench.broker.known_rows("db"))
