"""Pings, silence and clients that never speak."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import perf_counter

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients.session import Session
from repeater.errors import NO_PONG, STALE, WRITE_ERROR, Disconnect
from repeater.fanout.transport import Chunk
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_STREAM,
    PLAIN,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.protocol.websocket.frames import PING_FRAME
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node

OPTIONS = NodeOptions(ping_interval=20, pong_timeout=5, stale_timeout=8)
TICK = 1.0


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
async def test_first_ping(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The first ping comes after half an interval to a whole one, a tick late at most."""
    monkeypatch.setattr("random.uniform", lambda low, high: low + (high - low) * (share - 0.5) * 2)
    transport = MemoryTransport(PLAIN)
    async with open_test_node(OPTIONS) as node, connect(node, transport):
        start = trio.current_time()
        while not transport.sent:  # noqa: ASYNC110  # the clock jumps
            await trio.sleep(0.1)
        assert share * 20 <= trio.current_time() - start <= share * 20 + TICK + 0.2
        assert transport.sent == [PING_FRAME]


async def test_jitter_is_half_an_interval_to_a_whole_one(autojump_clock: MockClock) -> None:
    """Many clients that come at once are not pinged at once, and none too early or too late."""
    transports = [MemoryTransport(PLAIN) for _ in range(50)]
    times: set[float] = set()
    async with open_test_node(OPTIONS) as node, trio.open_nursery() as nursery:

        async def hold(transport: MemoryTransport) -> None:
            async with connect(node, transport) as client:
                start = trio.current_time()
                while not transport.sent:  # noqa: ASYNC110  # the clock jumps
                    await trio.sleep(0.5)
                client.heard()
                times.add(trio.current_time() - start)

        for transport in transports:
            nursery.start_soon(hold, transport)
    assert min(times) >= 10
    assert max(times) <= 20 + TICK + 0.5
    assert len(times) > 3


async def test_silence_is_cut(autojump_clock: MockClock) -> None:
    """Without an answer a client is cut with 3012 within ping, pong and a tick for each."""
    transport = MemoryTransport(PLAIN)
    async with open_test_node(OPTIONS) as node:
        start = trio.current_time()
        async with connect(node, transport) as client:
            await trio.sleep(1_000)
        assert client.end == NO_PONG
        assert transport.aborted
        assert 15 <= trio.current_time() - start <= 25 + 2 * TICK
        assert node.statistics().ended == {3012: 1}


async def test_anything_inbound_counts(autojump_clock: MockClock) -> None:
    """A client that is heard within each pong timeout stays, and is pinged once an interval."""
    transport = MemoryTransport(PLAIN)
    async with open_test_node(OPTIONS) as node, connect(node, transport) as client:
        for _ in range(200):
            await trio.sleep(1)
            client.heard()
        assert client.end is None
        assert 8 <= len(transport.sent) <= 10


async def test_plain_client_behind_asgi_has_no_heartbeat(autojump_clock: MockClock) -> None:
    """Where no ping can be sent, a silent client is not cut."""
    transport = MemoryTransport(PLAIN_ASGI)
    async with open_test_node(OPTIONS) as node, connect(node, transport) as client:
        await trio.sleep(1_000)
        assert client.end is None
        assert not transport.sent


async def test_stale_client_is_disconnected(autojump_clock: MockClock) -> None:
    """A Centrifugo client that never sends `connect` is told 3502."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_test_node(OPTIONS) as node:
        start = trio.current_time()
        async with connect(node, transport, ready=False):
            await trio.sleep(1_000)
        assert transport.closed_with == STALE
        assert 8 <= trio.current_time() - start <= 8 + 2 * TICK


async def test_connect_ends_staleness(autojump_clock: MockClock) -> None:
    """After `connect` the stale timeout is off and pings of the protocol's form begin."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_test_node(OPTIONS) as node, connect(node, transport, ready=False) as client:
        await Session(node, client).receive('{"connect":{},"id":1}')
        await trio.sleep(9.5)
        assert client.end is None
        while len(transport.sent) < 2:  # noqa: ASYNC110  # the clock jumps
            await trio.sleep(0.5)
        assert transport.sent[1] == b"{}"
        client.heard()


async def test_wheel_forgets_those_who_left(autojump_clock: MockClock) -> None:
    """A client that left is referenced by no slot, whatever its state was."""
    async with open_test_node(OPTIONS) as node:
        async with connect(node, MemoryTransport(PLAIN)) as client:
            while not client.transport.sent:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await trio.sleep(1)
        assert not node.heartbeat._slots


async def test_a_reload_holds_for_those_who_come_after(autojump_clock: MockClock) -> None:
    """A client is judged by the options that were in force when it came."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_test_node(NodeOptions(stale_timeout=60)) as node:
        node.reload(msgspec.structs.replace(node.options, stale_timeout=3))
        async with connect(node, transport, ready=False) as client:
            await trio.sleep(5)
        assert client.end is STALE


class DeadTransport(MemoryTransport):
    """A peer that is gone, which only a write finds out."""

    def write(self, chunk: Chunk) -> int:
        raise OSError("broken pipe")


@pytest.mark.parametrize(
    "codec", [EVENT_STREAM, CENTRIFUGE_STREAM, PLAIN], ids=lambda one: one.name
)
async def test_the_wheel_forgets_who_is_found_dead_by_a_ping(
    codec: Codec, autojump_clock: MockClock
) -> None:
    """The ping's own write ends the client, which then has no turn any more."""
    async with open_test_node(OPTIONS) as node:
        async with connect(node, DeadTransport(codec)) as client:
            await trio.sleep(100)
        assert client.end == WRITE_ERROR
        assert not node.heartbeat._slots


class Turn:
    """Something that takes turns, and does `act` in each."""

    def __init__(self, act: Callable[[], float | None]) -> None:
        self.heartbeat_slot = -1
        self.heartbeat = act

    def cut(self, disconnect: Disconnect) -> None:
        raise AssertionError(disconnect)


async def test_a_sweep_gives_way(autojump_clock: MockClock) -> None:
    """Many turns at once do not make one long one for everybody else, and all of them come."""
    turns = 0
    seen: list[int] = []

    def act() -> None:
        nonlocal turns
        turns += 1
        ends = perf_counter() + 0.0002
        while perf_counter() < ends:
            pass

    async with open_test_node(OPTIONS) as node:
        for _ in range(100):
            node.heartbeat.schedule(Turn(act), trio.current_time())
        while turns < 100:  # this loop counts the turns of others
            seen.append(turns)
            await trio.sleep(0 if turns else 0.5)
        await wait_all_tasks_blocked()  # the sweep may give way once more behind the last turn
    assert turns == 100
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 10


async def test_who_ends_during_a_sweep_has_no_turn(autojump_clock: MockClock) -> None:
    """A turn may end other clients of the same slot; the wheel does not call them any more."""
    took: list[str] = []

    async with open_test_node(OPTIONS) as node:
        pair: list[Turn] = []

        def turn(name: str, other: int) -> Callable[[], None]:
            def act() -> None:
                took.append(name)
                node.heartbeat.forget(pair[other])

            return act

        pair += [Turn(turn("first", 1)), Turn(turn("second", 0))]
        for one in pair:
            node.heartbeat.schedule(one, trio.current_time())
        await trio.sleep(5)
        assert len(took) == 1


async def test_a_later_slot_may_empty_during_a_sweep(autojump_clock: MockClock) -> None:
    """Clients of a slot that is due may all end before its turn; nothing of it is missed."""
    took: list[str] = []
    async with open_test_node(OPTIONS) as node:
        start = trio.current_time()
        late = Turn(lambda: took.append("late"))

        def early() -> None:
            took.append("early")
            node.heartbeat.forget(late)

        node.heartbeat.schedule(Turn(early), start + 1)
        node.heartbeat.schedule(late, start + 3)
        autojump_clock.jump(10)  # the loop was busy: both slots are due in one sweep
        await trio.sleep(5)
        assert took == ["early"]


async def test_stuck_clients_are_cut_in_turns(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep gives way between two cuts, and spares a client whose peer reads on meanwhile."""
    monkeypatch.setattr("repeater.clients.heartbeat._BUDGET", -1.0)
    transports = [StallingTransport(PLAIN) for _ in range(3)]
    async with open_test_node(NodeOptions(write_timeout=30)) as node, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(node, one)) for one in transports]
        for client in clients:
            client.outbox.send(b"event")
        await wait_all_tasks_blocked()
        for client in clients:
            assert client.outbox._backlog is not None
            client.outbox._backlog.moved_at -= 31
        trio.lowlevel.spawn_system_task(node.heartbeat.sweep)
        await trio.lowlevel.checkpoint()
        for transport in transports:
            transport.allow(100)
        await wait_all_tasks_blocked()
        assert [client.end for client in clients] == [WRITE_ERROR, None, None]
