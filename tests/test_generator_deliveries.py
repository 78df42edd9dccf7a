"""The load generator's judge of deliveries: a benchmark that cannot fail proves nothing."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence

import pytest

from benchmarks.generator import receivers
from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy, Deliveries
from benchmarks.generator.wire import WireError, event, pong, server_frame
from benchmarks.model import Turn


class Nobody(Publisher):
    """A publisher whose events go nowhere: what arrives is what a test says."""

    def __init__(self) -> None:
        pass

    def publish(self, data: bytes, entry: Entry | None = None) -> None:
        pass


class Room:
    """Subscribers, and the server's ends of their connections."""

    def __init__(self, interests: Sequence[Sequence[int]]) -> None:
        self.crowd = Crowd(0)
        self.servers = list[socket.socket]()
        for _ in interests:
            server, client = socket.socketpair()
            client.setblocking(False)
            server.settimeout(5)
            self.crowd.sockets[client.fileno()] = client
            self.crowd.poller.register(client, select.EPOLLIN)
            self.servers.append(server)
        self.deliveries = Deliveries(self.crowd, interests)

    def publish(self, *channels: int) -> None:
        for channel in channels:
            self.deliveries.publish(Nobody(), channel=channel)

    def deliver(self, subscriber: int, *numbers: int) -> None:
        for number in numbers:
            self.servers[subscriber].sendall(frame(number))
            self.deliveries.pump(0)

    def finish(self) -> None:
        self.deliveries.finish(0)

    def close(self) -> None:
        self.crowd.close(reset=False)
        self.crowd.poller.close()
        for server in self.servers:
            server.close()


def frame(number: int) -> bytes:
    return server_frame(event(number))


@pytest.fixture
def room() -> Iterator[Room]:
    """Two subscribers of one channel, to which three events were published."""
    room = Room([(0,), (0,)])
    room.publish(0, 0, 0)
    yield room
    room.close()


@pytest.fixture
def channels() -> Iterator[Room]:
    """One subscriber of channel 0, one of channel 1, one of both; two events went to each."""
    room = Room([(0,), (1,), (0, 1)])
    room.publish(0, 1, 0, 1)
    yield room
    room.close()


def test_every_event_once_and_in_order_is_no_fault(room: Room) -> None:
    """Each delivery has a latency, each event a last one."""
    room.deliver(0, 0, 1, 2)
    room.deliver(1, 0, 1, 2)
    room.finish()
    assert len(room.deliveries.latencies_ns) == 6
    assert len(room.deliveries.last_ns) == 3


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((0, 2), "lost"),
        ((1,), "lost"),
        ((0, 0), "doubled"),
        ((0, 1, 0), "doubled"),
        ((0, 1, 2, 2), "doubled"),
        ((0, 1, 2, 3), "never published"),
    ],
)
def test_lost_doubled_or_unknown_event_fails_the_run(
    room: Room, numbers: Sequence[int], fault: str
) -> None:
    """At once, with what was wrong."""
    room.deliver(1, 0, 1, 2)
    with pytest.raises(WireError, match=fault):
        room.deliver(0, *numbers)


def test_faults_inside_one_chunk_are_found(room: Room) -> None:
    """Also in a chunk that is known already, because it came to another subscriber."""
    chunk = frame(0) + frame(1)
    room.servers[0].sendall(chunk)
    room.deliveries.pump(0)
    room.deliver(1, 0)
    room.servers[1].sendall(chunk)
    with pytest.raises(WireError, match="doubled"):
        room.deliveries.pump(0)


def test_event_that_never_comes_fails_the_run(room: Room) -> None:
    """The wait for it ends with an error."""
    room.deliver(0, 0, 1, 2)
    room.deliver(1, 0, 1)
    with pytest.raises(WireError, match="1 events did not reach"):
        room.finish()


def test_event_that_comes_again_after_all_fails_the_run(room: Room) -> None:
    """The run is not over before nothing comes any more."""
    room.deliver(0, 0, 1, 2)
    room.deliver(1, 0, 1, 2)
    room.servers[0].sendall(frame(2))
    with pytest.raises(WireError, match="doubled"):
        room.deliveries.finish(5)


def test_hanging_up_fails_the_run(room: Room) -> None:
    """A subscriber that is gone hears nothing, however little was due."""
    room.servers[0].close()
    with pytest.raises(WireError, match="hung up"):
        room.deliveries.pump(0)


def test_channels_have_orders_of_their_own(channels: Room) -> None:
    """Between two channels any order will do."""
    channels.deliver(0, 0, 2)
    channels.deliver(1, 1, 3)
    channels.deliver(2, 1, 0, 2, 3)
    channels.finish()


@pytest.mark.parametrize(
    ("subscriber", "numbers", "fault"),
    [
        (0, (0, 1), "another channel"),
        (1, (0,), "another channel"),
        (2, (0, 3), "lost"),
        (2, (0, 1, 2, 0), "doubled"),
    ],
)
def test_events_are_judged_in_their_channel(
    channels: Room, subscriber: int, numbers: Sequence[int], fault: str
) -> None:
    """Nobody hears another channel, and in each none is lost or doubled."""
    with pytest.raises(WireError, match=fault):
        channels.deliver(subscriber, *numbers)


def test_event_in_parts_counts_once_it_is_whole(room: Room) -> None:
    """Its latency is that of its last part."""
    whole = frame(0)
    room.servers[0].sendall(whole[:50])
    room.deliveries.pump(0)
    assert not room.deliveries.latencies_ns
    room.servers[0].sendall(whole[50:])
    room.deliveries.pump(0)
    assert len(room.deliveries.latencies_ns) == 1


def test_ping_beside_an_event_is_answered_for_everybody(room: Room) -> None:
    """Identical chunks are read once only; who is asked answers nevertheless."""
    for server in room.servers:
        server.sendall(frame(0) + b"\x89\x00")
        room.deliveries.pump(0)
    assert [server.recv(64) for server in room.servers] == [pong(b"")] * 2
    assert len(room.deliveries.latencies_ns) == 2


def test_busy_is_a_share_of_the_time_something_was_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What passed before, between and after does not count."""
    used, wall = iter([0, 30, 500, 550]), iter([0, 100, 900, 1_000])
    monkeypatch.setattr(receivers, "_used_ns", lambda: next(used))
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(wall))
    busy = Busy()
    assert busy.share == 0
    for _ in range(2):
        busy.begin()
        busy.begin()  # another event, while the first is under way
        busy.end()
        busy.end()
    assert busy.share == pytest.approx(0.4)


def test_waiting_for_the_core_is_being_busy() -> None:
    """What a thread has used is never less than what it has run."""
    ran = time.thread_time_ns()
    assert receivers._used_ns() >= ran


@pytest.mark.parametrize(("share", "is_bottleneck"), [(0.89, False), (0.9, True), (1.0, True)])
def test_turn_says_when_the_generator_was_measured(share: float, is_bottleneck: bool) -> None:
    """From nine tenths of its core on."""
    assert Turn(values={}, generator=share).bottleneck is is_bottleneck
