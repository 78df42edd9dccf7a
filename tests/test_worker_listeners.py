"""The listening sockets of a server with workers: who has which, and what is in their queues."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from repeater.config import load_settings
from repeater.config.endpoints import Endpoint
from repeater.front.listeners import ListenError, open_all
from repeater.front.passed_sockets import PassedSocket, PassedSockets
from repeater.front.worker_listeners import SPREADS, WorkerListeners
from tests.deadlines import LOOP_ANSWERS

pytestmark = pytest.mark.skipif(not SPREADS, reason="this system does not spread connections")


@contextlib.contextmanager
def listening(
    workers: int = 2, spread: bool = True, **settings: object
) -> Iterator[WorkerListeners]:
    """The sockets of a supervisor."""
    listeners = WorkerListeners(workers, spread=spread)
    try:
        yield open_all(load_settings(**{"dev": True, "port": 0, **settings}), listeners)
    finally:
        listeners.close()


def accepted(listener: socket.socket) -> int:
    """The number of connections that waited."""
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


def connections(port: int, number: int) -> contextlib.ExitStack:
    """So many connections, each of which is established."""
    stack = contextlib.ExitStack()
    for _ in range(number):
        stack.enter_context(socket.create_connection(("127.0.0.1", port), LOOP_ANSWERS))
    return stack


def test_each_worker_has_its_own() -> None:
    """All have the port that the system chose, and the kernel spreads connections over them."""
    with listening() as listeners:
        (one,), (two,) = listeners.of(1), listeners.of(2)
        assert one.getsockname() == two.getsockname() == ("127.0.0.1", listeners.port)
        assert listeners.of(1)[0] is one
        assert [passed.socket for passed in listeners.passable()] == [one, two]
        with connections(listeners.port, 64):
            found = accepted(one), accepted(two)
        assert sum(found) == 64
        assert min(found) > 8  # far below what chance allows


def test_one_that_stays_away_gets_no_connections() -> None:
    """Its socket is closed, so that the others get them; later it has one again."""
    with listening() as listeners:
        one, two = listeners.of(1)[0], listeners.of(2)[0]
        listeners.give_up(1)
        assert one.fileno() < 0
        with connections(listeners.port, 8):
            assert accepted(two) == 8
        assert listeners.of(1)[0].getsockname() == two.getsockname()


def test_the_order_of_the_settings(tmp_path: Path) -> None:
    """Addresses are named as `listen` has them; a Unix socket is shared."""
    path = tmp_path / "a.sock"
    places = ["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"]
    with listening(listen=places) as listeners:
        named = list(map(str, listeners.endpoints()))
        assert named[1] == f"unix:{path}"
        assert named[0] == f"127.0.0.1:{listeners.port}"
        assert named[2] != named[0]
        assert len(listeners.of(1)) == 3
        assert set(listeners.of(1)) & set(listeners.of(2)) == set(listeners.sockets)
    assert not path.exists()


def test_where_nothing_is_spread_all_share() -> None:
    """As on systems that cannot do it."""
    with listening(spread=False) as listeners:
        assert listeners.of(1) == listeners.of(2) == tuple(listeners.sockets)


@pytest.mark.parametrize("other_spreads", [True, False])
def test_a_port_of_another_server_is_not_joined(other_spreads: bool) -> None:
    """Neither one of a server with workers, nor of another."""
    with listening(spread=other_spreads) as other:
        other.of(1)
        with pytest.raises(ListenError, match="in use"), listening(port=other.port):
            pass


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_passed_sockets_are_all_kept(workers: int) -> None:
    """Connections that wait in the queues of three workers are found by however many there are."""
    with listening(3) as before, contextlib.ExitStack() as stack:
        for number in (1, 2, 3):
            before.of(number)
        port = before.port
        stack.enter_context(connections(port, 48))
        passed = PassedSockets(PassedSocket(one.socket.dup()) for one in before.passable())
        before.close()
        after = WorkerListeners(workers, passed)
        stack.callback(after.close)
        after.add_tcp(Endpoint("127.0.0.1", port), 64)
        assert after.port == port
        assert str(after.endpoints()[0]) == f"127.0.0.1:{port}"
        mine = [one for number in range(1, workers + 1) for one in after.of(number)]
        assert len(mine) == max(3, workers)
        assert sum(map(accepted, mine)) == 48
        stack.enter_context(connections(port, 48))
        assert sum(map(accepted, mine)) == 48


def test_a_plain_socket_is_joined() -> None:
    """That of a server without workers: its queue is kept, and the workers share what comes."""
    plain = socket.create_server(("127.0.0.1", 0))
    plain.setblocking(False)
    port = plain.getsockname()[1]
    after = WorkerListeners(2, PassedSockets([PassedSocket(plain)]))
    try:
        with connections(port, 8):
            after.add_tcp(Endpoint("127.0.0.1", 0), 64)
            first, one = after.of(1)
            (two,) = after.of(2)
            assert first is plain
            assert accepted(plain) == 8
        with connections(port, 64):
            found = accepted(plain), accepted(one), accepted(two)
        assert sum(found) == 64
        assert min(found[1:]) > 8
    finally:
        after.close()


def test_what_was_not_given_to_a_worker_is_closed() -> None:
    """No socket is left."""
    plain = socket.create_server(("127.0.0.1", 0))
    after = WorkerListeners(2, PassedSockets([PassedSocket(plain)]))
    after.add_tcp(Endpoint("127.0.0.1", 0), 64)
    after.close()
    assert plain.fileno() < 0
