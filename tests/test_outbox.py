"""The way out to one client, in step and out of step."""

from __future__ import annotations

import errno
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.errors import CONNECTION_CLOSED, SLOW, WRITE_ERROR, Disconnect
from repeater.fanout.outbox import BacklogRoom, Outbox, send_to_all
from repeater.fanout.transport import Chunk
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import PLAIN, PLAIN_ASGI, Codec
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node
from repeater.transports.websocket import WebSocketTransport


class Bench:
    """An outbox with its room, and what it was cut for."""

    def __init__(self, transport: MemoryTransport, room: BacklogRoom) -> None:
        self.transport = transport
        self.room = room
        self.cuts: list[Disconnect] = []
        self.outbox = Outbox(transport, room, self._cut)

    def _cut(self, disconnect: Disconnect) -> None:
        self.cuts.append(disconnect)
        self.outbox.close()
        self.transport.abort()


@asynccontextmanager
async def open_bench(transport: MemoryTransport, limit: int = 10_000) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(transport, BacklogRoom(nursery, limit=limit, write_timeout=5))
        yield bench
        bench.outbox.close()


async def test_direct_write_makes_no_task() -> None:
    """While nothing waits a chunk is one write of the very bytes, and no task is made."""
    chunk = b"hello"
    async with open_bench(MemoryTransport()) as bench:
        bench.outbox.send(chunk)
        assert bench.transport.sent[0] is chunk
        assert not bench.room.nursery.child_tasks
        assert bench.outbox.backlog_bytes == 0


async def test_partial_write_keeps_the_rest() -> None:
    """What the socket does not take waits, with all that comes later behind it."""
    transport = StallingTransport(PLAIN)
    async with open_bench(transport) as bench:
        transport.allow(2)
        bench.outbox.send(b"hello")
        bench.outbox.send(b"world")
        assert transport.sent == [b"he"]
        assert bench.outbox.backlog_bytes == 8
        transport.allow(100)
        await bench.outbox.wait_empty()
        assert b"".join(transport.sent) == b"helloworld"


async def test_drain_task_ends_with_the_backlog() -> None:
    """The drain task is there only while something waits; afterwards writes are direct again."""
    transport = StallingTransport()
    async with open_bench(transport) as bench:
        bench.outbox.send(b"a")
        await wait_all_tasks_blocked()
        assert len(bench.room.nursery.child_tasks) == 1
        assert bench.outbox in bench.room.backlogged
        transport.allow(100)
        await wait_all_tasks_blocked()
        assert not bench.room.nursery.child_tasks
        assert not bench.room.backlogged
        bench.outbox.send(b"b")
        assert transport.sent == [b"a", b"b"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 50)),
        st.tuples(st.just("push"), st.integers(1, 50)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("allow"), st.integers(1, 80)),
        st.tuples(st.just("wait"), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("codec", [PLAIN, PLAIN_ASGI], ids=repr)
@given(steps=STEPS)
@settings(max_examples=60)
async def test_order_holds_however_the_peer_reads(
    codec: Codec, steps: list[tuple[str, int]]
) -> None:
    """Every byte arrives once and in the order of `send` and `push`."""
    transport = StallingTransport(codec)
    expected, number = b"", 0
    async with open_bench(transport) as bench:
        for what, size in steps:
            if what in ("send", "push"):
                number += 1
                chunk = b"%d;" % number + b"." * size
                expected += chunk
                (bench.outbox.send if what == "send" else bench.outbox.push)(chunk)
            elif what == "flush":
                bench.outbox.flush()
            elif what == "allow":
                transport.allow(size)
            else:
                await wait_all_tasks_blocked()
        transport.allow(len(expected))
        await bench.outbox.wait_empty()
        assert b"".join(transport.sent) == expected
        assert not bench.cuts


async def test_unframed_chunks_are_never_joined() -> None:
    """Without frames a chunk is a message: those that waited go out one by one."""
    transport = StallingTransport(PLAIN_ASGI)
    async with open_bench(transport) as bench:
        for chunk in (b"a", b"b", b"c"):
            bench.outbox.send(chunk)
        transport.allow(10)
        await bench.outbox.wait_empty()
        assert transport.sent == [b"a", b"b", b"c"]


async def test_pushed_frames_leave_in_one_write() -> None:
    """What was pushed is joined into one write where there are frames."""
    async with open_bench(MemoryTransport(PLAIN)) as bench:
        assert bench.outbox.push(b"a")
        assert not bench.outbox.push(b"b")
        assert not bench.transport.sent
        bench.outbox.flush()
        assert bench.transport.sent == [b"ab"]


async def test_send_goes_behind_what_was_pushed() -> None:
    """`send` flushes what was pushed before it."""
    async with open_bench(MemoryTransport(PLAIN)) as bench:
        bench.outbox.push(b"a")
        bench.outbox.send(b"b")
        assert b"".join(bench.transport.sent) == b"ab"


async def test_one_chunk_to_all_whatever_state_they_are_in() -> None:
    """Direct, behind a backlog, behind a pushed chunk, broken, closed: each as by itself."""
    stalled = StallingTransport(PLAIN)
    async with (
        open_bench(MemoryTransport(PLAIN)) as direct,
        open_bench(stalled) as behind,
        open_bench(MemoryTransport(PLAIN)) as pushed,
        open_bench(MemoryTransport(PLAIN)) as broken,
        open_bench(MemoryTransport(PLAIN)) as closed,
    ):
        behind.outbox.send(b"first")
        pushed.outbox.push(b"first")
        broken.transport.abort()
        closed.outbox.close()
        benches = (direct, behind, pushed, broken, closed)
        send_to_all([bench.outbox for bench in benches], b"second")
        assert direct.transport.sent == [b"second"]
        assert behind.outbox.backlog_bytes == 11
        assert pushed.transport.sent == [b"firstsecond"]
        assert broken.cuts == [WRITE_ERROR]
        assert closed.transport.sent == []
        assert closed.cuts == []
        stalled.allow(100)
        await behind.outbox.wait_empty()
        assert b"".join(stalled.sent) == b"firstsecond"
        behind.outbox.send(b"third")
        assert stalled.sent[-1] == b"third"
        assert behind.outbox.backlog_bytes == 0


async def test_byte_bound_cuts_as_slow() -> None:
    """The limit may be reached; the byte past it cuts with 3008."""
    async with open_bench(StallingTransport(), limit=10) as bench:
        bench.outbox.send(b"x" * 10)
        assert not bench.cuts
        bench.outbox.send(b"x")
        assert bench.cuts == [SLOW]
        assert bench.outbox.closed
        assert not bench.room.backlogged
        await wait_all_tasks_blocked()
        assert not bench.room.nursery.child_tasks


async def test_the_first_chunk_always_fits() -> None:
    """A client without a backlog is not cut for one long chunk, but for the next byte."""
    async with open_bench(StallingTransport(), limit=10) as bench:
        bench.outbox.send(b"x" * 25)
        assert not bench.cuts
        assert bench.outbox.backlog_bytes == 25
        bench.outbox.send(b"x")
        assert bench.cuts == [SLOW]


async def test_cut_before_the_drain_task_began() -> None:
    """A native client cut in the turn in which its backlog was made troubles nobody else."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        transport = WebSocketTransport(ours, PLAIN)
        async with open_test_node(NodeOptions(outbox_limit=1_000_000)) as node:
            with trio.CancelScope() as scope:
                client = Client(node.registry, transport, scope, ready=True)
                client.outbox.send(b"x" * 900_000)
                client.outbox.send(b"x" * 900_000)
                assert client.end == SLOW
                await client.leave()
            await wait_all_tasks_blocked()
            assert node.statistics().clients == 0


async def test_broken_socket_cuts_with_write_error() -> None:
    """An OSError of the direct write and one of the drain task both cut with 3009."""
    async with open_bench(MemoryTransport()) as bench:
        bench.transport.abort()
        bench.outbox.send(b"x")
        assert bench.cuts == [WRITE_ERROR]
    async with open_bench(StallingTransport()) as bench:
        bench.outbox.send(b"x")
        await wait_all_tasks_blocked()
        bench.transport.abort()
        await wait_all_tasks_blocked()
        assert bench.cuts == [WRITE_ERROR]


class FailingTransport(StallingTransport):
    """Takes nothing at once, and then fails."""

    def __init__(self, error: Exception, *, at_once: bool) -> None:
        super().__init__()
        self._error, self._at_once = error, at_once

    def write(self, chunk: Chunk) -> int:
        if self._at_once:
            raise self._error
        raise BlockingIOError

    async def send_some(self, chunk: Chunk) -> int:
        await trio.lowlevel.checkpoint()
        raise self._error


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("error", "end"),
    [
        (BrokenPipeError(), CONNECTION_CLOSED),
        (ConnectionResetError(), CONNECTION_CLOSED),
        (TimeoutError(), WRITE_ERROR),
        (OSError(errno.EHOSTUNREACH, "no route to host"), WRITE_ERROR),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_who_left_and_what_broke(error: Exception, end: Disconnect, *, at_once: bool) -> None:
    """A peer that hung up or was reset has left (3000); other errors of a write stay 3009."""
    async with open_bench(FailingTransport(error, at_once=at_once)) as bench:
        bench.outbox.send(b"x")
        await wait_all_tasks_blocked()
        assert bench.cuts == [end]


async def test_no_progress_cuts_in_the_sweep(autojump_clock: MockClock) -> None:
    """A backlog that stands still is cut with 3009 after the write timeout, a tick late at most."""
    transport = StallingTransport(PLAIN)
    async with open_test_node() as node:
        start = trio.current_time()
        async with connect(node, transport, ["c"]) as client:
            client.outbox.send(b"x" * 100)
            await trio.sleep(1_000)
        assert client.end == WRITE_ERROR
        assert transport.aborted
        assert 5 <= trio.current_time() - start <= 7
        assert node.statistics().ended == {3009: 1}


async def test_slow_progress_is_progress(autojump_clock: MockClock) -> None:
    """A peer that takes a byte now and then is not cut."""
    transport = StallingTransport(PLAIN)
    async with open_test_node() as node, connect(node, transport, ["c"]) as client:
        client.outbox.send(b"x" * 10)
        for _ in range(10):
            await trio.sleep(4)
            assert client.end is None
            transport.allow(1)
        await client.outbox.wait_empty()
        assert b"".join(transport.sent) == b"x" * 10


async def test_close_drops_everything() -> None:
    """After `close` nothing is written, the drain task is gone and waiters wake; twice is once."""
    transport = StallingTransport()
    async with open_bench(transport) as bench:
        bench.outbox.send(b"a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.outbox.wait_empty)
            await wait_all_tasks_blocked()
            bench.outbox.close()
        bench.outbox.close()
        transport.allow(100)
        bench.outbox.send(b"b")
        bench.outbox.push(b"c")
        bench.outbox.flush()
        await wait_all_tasks_blocked()
        assert not transport.sent
        assert not bench.room.nursery.child_tasks
        assert not bench.cuts


async def test_closed_outbox_lets_go_of_its_client() -> None:
    """The two refer to each other while it lives, and to nobody afterwards: it is freed at once."""

    class Owner:
        def cut(self, _disconnect: Disconnect) -> None:
            raise AssertionError

    async with trio.open_nursery() as nursery:
        owner = Owner()
        room = BacklogRoom(nursery, limit=10_000, write_timeout=5)
        outbox = Outbox(MemoryTransport(), room, owner.cut)
        freed = weakref.ref(owner)
        outbox.close()
        del owner
        assert freed() is None


async def test_many_pushed_bytes_do_not_wait_for_the_flush() -> None:
    """The replies of one message are bounded like everything else on its way to a client."""
    transport = StallingTransport(PLAIN)
    async with open_bench(transport, limit=100_000) as bench:
        for _ in range(1_000):
            bench.outbox.push(b"x" * 1_000)
            if bench.cuts:
                break
            assert bench.outbox.backlog_bytes <= 100_000
        assert bench.cuts == [SLOW]
        assert not bench.outbox.push(b"x" * 1_000)


async def test_pushed_bytes_that_leave_are_no_cut() -> None:
    """A client that takes them gets any number of replies to one message."""
    transport = MemoryTransport(PLAIN)
    async with open_bench(transport, limit=100_000) as bench:
        for _ in range(1_000):
            bench.outbox.push(b"x" * 1_000)
        bench.outbox.flush()
        assert bench.cuts == []
        assert sum(map(len, transport.sent)) == 1_000_000
        assert max(map(len, transport.sent)) <= 66_000


class ShieldedTransport(MemoryTransport):
    """Writes as an ASGI server does: under a shield that only an abort lifts."""

    def __init__(self) -> None:
        super().__init__(PLAIN_ASGI)
        self._abort = trio.Event()

    def write(self, chunk: Chunk) -> int:
        raise BlockingIOError

    async def send_some(self, chunk: Chunk) -> int:
        await self.close(SLOW)
        raise trio.BrokenResourceError

    async def close(self, disconnect: Disconnect) -> None:
        with trio.CancelScope(shield=True):
            await self._abort.wait()

    def abort(self) -> None:
        super().abort()
        self._abort.set()


@pytest.mark.parametrize("waiting", [b"", b"x"], ids=["goodbye", "backlog"])
async def test_a_goodbye_under_a_shield_ends_at_its_deadline(
    waiting: bytes, autojump_clock: MockClock
) -> None:
    """The socket is aborted when the goodbye's time is over: a cancel alone would do nothing."""
    transport = ShieldedTransport()
    async with open_test_node(NodeOptions(close_timeout=2)) as node:
        async with connect(node, transport) as client:
            if waiting:
                client.outbox.send(waiting)
            await wait_all_tasks_blocked()
            start = trio.current_time()
            client.disconnect(SLOW)
            await trio.lowlevel.checkpoint()
        assert transport.aborted
        assert 2 <= trio.current_time() - start <= 3 + 1e-6


async def test_a_client_that_was_asked_to_go_can_be_cut(autojump_clock: MockClock) -> None:
    """Whoever finds it broken meanwhile ends its goodbye at once."""
    transport = ShieldedTransport()
    async with open_test_node() as node:
        async with connect(node, transport) as client:
            client.disconnect(SLOW)
            client.cut(WRITE_ERROR)
            start = trio.current_time()
            await trio.lowlevel.checkpoint()
        assert transport.aborted
        assert client.end is SLOW
        assert trio.current_time() == start


async def test_slow_clients_share_the_rest_of_a_chunk() -> None:
    """What a socket did not take of a shared chunk is a view of that chunk, not a copy."""
    chunk = b"x" * 5_000
    transports = [StallingTransport(PLAIN) for _ in range(3)]
    async with AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(open_bench(one)) for one in transports]
        for transport in transports:
            transport.allow(1_000)
        send_to_all([bench.outbox for bench in benches], chunk)
        for bench, transport in zip(benches, transports, strict=True):
            assert bench.outbox._backlog is not None
            rest = bench.outbox._backlog._receive.receive_nowait()
            assert isinstance(rest, memoryview)
            assert rest.obj is chunk
            bench.outbox._backlog._send.send_nowait(rest)
            transport.allow(10_000)
        await wait_all_tasks_blocked()
        assert all(b"".join(transport.sent) == chunk for transport in transports)
