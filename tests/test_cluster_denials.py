"""Blocked users and revoked tokens of a cluster, on real servers and on the mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from repeater.access.denial_store import DenialStore
from repeater.access.grants import Denial
from repeater.access.sqlite_denials import open_sqlite_denials
from repeater.brokers.control import Member, Question
from repeater.cluster.denial_log import value_of
from repeater.errors import BrokerError
from repeater.testing.denials import OpenDenials, check_denials
from tests.clusters import open_clusters
from tests.memory_clusters import MemoryCluster, MemoryNode, open_memory_cluster
from tests.memory_network import Fates
from tests.valkeys import Program, ValkeyServer, each_program, valkey

ANN, BOB, CHO = Denial(user="ann"), Denial(user="bob"), Denial(user="cho")
LIFTED = Denial(user="ann", lifted=True)


async def test_a_file_keeps_the_contract_of_denials(tmp_path: Path) -> None:
    """The store of a server without an engine."""
    numbers = count()

    def begin() -> OpenDenials:
        path = tmp_path / f"{next(numbers)}"

        @asynccontextmanager
        async def opened(_count: int) -> AsyncIterator[Sequence[DenialStore]]:
            async with open_sqlite_denials(path) as store:
                yield [store]

        return opened

    await check_denials(begin, most=1)


@each_program
async def test_a_cluster_keeps_the_contract_of_denials(program: Program) -> None:
    """Nodes that share a real server."""
    numbers = count()
    with valkey(program) as server:

        def begin() -> OpenDenials:
            prefix = f"rule{next(numbers)}"

            @asynccontextmanager
            async def opened(many: int) -> AsyncIterator[Sequence[DenialStore]]:
                async with open_members(server, many, prefix) as stores:
                    yield stores

            return opened

        await check_denials(begin, most=2)


@asynccontextmanager
async def open_members(
    server: ValkeyServer, many: int, prefix: str
) -> AsyncIterator[Sequence[DenialStore]]:
    """Stores whose nodes are members."""

    async def carry_out(_asker: Member, _question: Question) -> bytes:
        return b""

    async with (
        open_clusters(server.unix_url, many, prefix=prefix) as parts,
        AsyncExitStack() as stack,
    ):
        nursery = await stack.enter_async_context(trio.open_nursery())
        for part in parts:
            await nursery.start(part.control.run, carry_out)
        yield [part.denials for part in parts]
        nursery.cancel_scope.cancel()


# Nodes.


async def start(cluster: MemoryCluster, many: int) -> list[MemoryNode]:
    return [await cluster.start() for _ in range(many)]


async def test_a_change_is_in_force_everywhere_when_it_is_answered(
    autojump_clock: MockClock,
) -> None:
    """All members that the engine reaches have applied it by then."""
    async with open_memory_cluster() as cluster:
        nodes = await start(cluster, 3)
        nodes[2].apply_lasts = 0.2
        for denial, wanted in ((ANN, {ANN.key: ANN}), (LIFTED, dict[object, object]())):
            await nodes[0].deny(denial)
            assert [node.denied for node in nodes] == [wanted] * 3
        assert trio.current_time() < 5


async def test_a_node_that_starts_has_all(autojump_clock: MockClock) -> None:
    """It loads them before it is a member."""
    async with open_memory_cluster() as cluster:
        (first,) = await start(cluster, 1)
        await first.deny(ANN)
        (second,) = await start(cluster, 1)
        assert second.denied == {ANN.key: ANN}


async def test_a_change_while_a_node_starts_is_not_missed(autojump_clock: MockClock) -> None:
    """Nobody asks a node that is not a member yet: so it looks again when it is one."""
    async with open_memory_cluster() as cluster:
        first = await cluster.start()
        cluster.join_pause = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.start)
            await trio.sleep(0.8)
            await first.deny(ANN)
        await trio.sleep(0.5)
        assert cluster.nodes[1].denied == {ANN.key: ANN}


async def test_a_node_whose_clock_is_ahead_lifts_nothing(autojump_clock: MockClock) -> None:
    """The engine forgets a denial when it has expired by the engine's clock, and no earlier."""
    async with open_memory_cluster() as cluster:
        first = await cluster.start()
        now = int(cluster.network.valkey._now())
        denial = Denial(user="ann", expire_at=now + 600)
        await first.deny(denial)
        await first.parts.denials.sweep(now + 3_600)
        second = await cluster.start()
        assert second.denied == {denial.key: denial}
        await trio.sleep(700)
        await first.parts.denials.sweep(now + 4_300)
        assert not cluster.network.valkey.data.get(b"repeater:denials")


async def test_a_lost_message_is_mended_within_ten_seconds(autojump_clock: MockClock) -> None:
    """The caller waits for a second; then the node finds that it has missed something."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        cluster.network.fates = Fates(lost=1.0)
        began = trio.current_time()
        await first.deny(ANN)
        assert 1 <= trio.current_time() - began < 1.5
        cluster.network.fates = Fates()
        assert second.denied == {}
        await trio.sleep(8)
        assert second.denied == {ANN.key: ANN}


async def test_a_node_that_was_cut_off_has_all_within_ten_seconds(
    autojump_clock: MockClock,
) -> None:
    """Counted from when it reaches the engine again."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await first.deny(BOB)
        second.cut()
        await trio.sleep(1)
        await first.deny(ANN)
        await first.deny(Denial(user="bob", lifted=True))
        await trio.sleep(60)
        assert second.denied == {BOB.key: BOB}
        second.mend()
        await trio.sleep(10)
        assert second.denied == {ANN.key: ANN}


async def test_without_the_engine_nothing_is_changed(autojump_clock: MockClock) -> None:
    """The caller hears it at once, and what was in force stays in force."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await first.deny(ANN)
        cluster.network.go_down()
        await trio.sleep(1)
        with pytest.raises(BrokerError, match="the engine is not there"):
            await first.deny(BOB)
        await trio.sleep(30)
        assert first.denied == second.denied == {ANN.key: ANN}


async def test_a_full_engine_changes_nothing(autojump_clock: MockClock) -> None:
    """Neither is anybody blocked nor is a block lifted, anywhere."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await first.deny(ANN)
        cluster.network.valkey.refusing = "OOM command not allowed when used memory > 'maxmemory'."
        for denial in (BOB, LIFTED):
            with pytest.raises(BrokerError, match="OOM"):
                await first.deny(denial)
        cluster.network.valkey.refusing = ""
        third = await cluster.start()
        assert first.denied == second.denied == third.denied == {ANN.key: ANN}


async def test_denials_survive_the_loss_of_all_data(autojump_clock: MockClock) -> None:
    """Nodes write them anew, and who starts later has them."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await first.deny(ANN)
        cluster.network.go_down()
        await trio.sleep(5)
        cluster.network.valkey.data.clear()
        cluster.network.come_back()
        await trio.sleep(15)
        third = await cluster.start()
        assert first.denied == second.denied == third.denied == {ANN.key: ANN}


@pytest.mark.parametrize("later", [False, True])
async def test_what_waits_for_a_lost_change_is_written_anew(
    later: bool, autojump_clock: MockClock
) -> None:
    """A failover loses a change that nobody was told of, and the one behind it, which waits."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await second.deny(CHO)
        await trio.sleep(1)
        missing = await second.parts.denials._write(BOB)
        waiting = await second.parts.denials._write(ANN)
        assert (missing.number, waiting.number) == (2, 3)
        first.parts.denials._note(waiting)
        cluster.network.fail_over(2)
        if later:  # The engine's new history goes on, with one number less.
            first.cut()
            await trio.sleep(1)
            await second.parts.denials._write(LIFTED)
            first.mend()
        await trio.sleep(15)
        wanted = {CHO.key: CHO, ANN.key: ANN}
        assert first.denied == second.denied == wanted
        third = await cluster.start()
        assert third.denied == wanted


async def test_a_later_change_wins_while_the_first_still_waits(autojump_clock: MockClock) -> None:
    """A node that cannot answer delays the first call; its own node does not undo the second."""
    async with open_memory_cluster() as cluster:
        first, second, third = await start(cluster, 3)
        third.cut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.deny, ANN)
            await trio.sleep(0.5)
            nursery.start_soon(second.deny, LIFTED)
        assert first.denied == second.denied == {}
        third.mend()
        await trio.sleep(10)
        assert third.denied == {}


async def test_what_is_written_anew_narrows_nothing(autojump_clock: MockClock) -> None:
    """Somebody may have denied the same, for longer, after the engine had lost its data."""
    async with open_memory_cluster() as cluster:
        (node,) = await start(cluster, 1)
        longer = Denial(user="ann", expire_at=2_000_000_000)
        await node.deny(longer)
        shorter = Denial(user="ann", expire_at=1_900_000_000)
        assert (await node.parts.denials._write(shorter, anew=True)).value == value_of(longer)
        assert (await node.parts.denials._write(ANN, anew=True)).value == value_of(ANN)


async def test_a_narrower_revocation_gives_no_token_back(autojump_clock: MockClock) -> None:
    """Two nodes revoke at the same time: the wider one is in force on both."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        wide = Denial(user="ann", issued_before=1_700_000_000)
        narrow = Denial(user="ann", issued_before=1_600_000_000, expire_at=1_800_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.deny, wide)
            nursery.start_soon(second.deny, narrow)
        await trio.sleep(1)
        assert first.denied == second.denied == {wide.key: wide}


@pytest.mark.parametrize("value", [b"x", b"9 x", b"9" * 40 + b" 0", b"0 " + b"9" * 40])
async def test_a_foreign_value_is_not_joined(value: bytes, autojump_clock: MockClock) -> None:
    """A revocation takes its place, as if nothing were there."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        revoked = Denial(user="ann", issued_before=5, expire_at=9_999_999_999)
        cluster.network.valkey.put(b"repeater:denials", {b"tokens ann": value})
        await first.deny(revoked)
        assert first.denied == second.denied == {revoked.key: revoked}


async def test_foreign_keys_of_denials_are_replaced(autojump_clock: MockClock) -> None:
    """What a node knows is written anew."""
    async with open_memory_cluster() as cluster:
        first, second = await start(cluster, 2)
        await first.deny(ANN)
        cluster.network.valkey.put(b"repeater:denials", b"text")
        cluster.network.valkey.put(b"repeater:denials-version", b"text")
        await trio.sleep(15)
        await first.deny(BOB)
        third = await cluster.start()
        wanted = {ANN.key: ANN, BOB.key: BOB}
        assert first.denied == second.denied == third.denied == wanted


async def test_a_cancelled_change_is_in_force_everywhere_or_nowhere(
    autojump_clock: MockClock,
) -> None:
    """Whoever asked for it is gone; its own node finds what became of it, like the others."""
    async with open_memory_cluster() as cluster:
        nodes = await start(cluster, 2)
        for number in range(10):
            denial = Denial(user=f"user {number}")
            with trio.move_on_after(0.002 * number):
                await nodes[0].deny(denial)
        await trio.sleep(12)
        assert nodes[0].denied == nodes[1].denied
        assert nodes[0].denied
