"""The peers in Python: each repeats the right events to the right clients, or is not measured.

Real processes, started as the benchmarks start them, and the load generator's own sockets.
"""

from __future__ import annotations

import contextlib
import time

import pytest

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.wire import WireError, event, event_number, pong, split_frames
from benchmarks.peers.peer import Peer
from benchmarks.peers.python_peers import PYTHON_PEERS
from benchmarks.servers import started
from tests.deadlines import LOOP_ANSWERS
from tests.processes import starts_processes

_EVENTS = 20


def heard(crowd: Crowd, events: int) -> dict[int, list[int]]:
    """The events of each subscriber, by its descriptor, when there are so many of them in all."""
    numbers: dict[int, list[int]] = {fd: [] for fd in crowd.sockets}
    deadline = time.monotonic() + LOOP_ANSWERS
    while sum(map(len, numbers.values())) < events:
        if time.monotonic() > deadline:
            raise WireError(f"{events} events were due; heard {numbers}")
        for fd, _ in crowd.poller.poll(0.1):
            for payload in crowd.frames(fd, crowd.sockets[fd].recv(65_536)):
                number = event_number(payload)
                assert number is not None
                numbers[fd].append(number)
    return numbers


@starts_processes
@pytest.mark.parametrize("peer", PYTHON_PEERS, ids=lambda peer: peer.name)
def test_a_peer_repeats_in_order_to_the_subscribers_of_a_channel(peer: Peer) -> None:
    """One event at a time into one channel, all at once into the other: 20 in all."""
    if (reason := peer.missing()) is not None:
        pytest.skip(reason)
    with started(peer) as child, Crowd(child.port) as crowd, contextlib.ExitStack() as stack:
        for channels in (["a"], ["b"], ["a", "b"]):
            crowd.open(1, peer.subscribe(channels))
        into_a = Publisher(child.port, peer.entry(["a"]))
        stack.enter_context(contextlib.closing(into_a))
        into_b = Publisher(child.port, peer.flooding(["b"]))
        stack.enter_context(contextlib.closing(into_b))
        of_a, of_b = range(0, _EVENTS, 2), range(1, _EVENTS, 2)
        for number in of_a:
            into_a.publish(event(number))
        into_b.send(into_b.encode([event(number) for number in of_b], 0), len(of_b))
        only_a, only_b, both = heard(crowd, 2 * _EVENTS).values()
        into_a.wait()
        into_b.wait()
    assert only_a == list(of_a)
    assert only_b == list(of_b)
    assert [number for number in both if number in of_a] == list(of_a)
    assert [number for number in both if number in of_b] == list(of_b)
    assert len(both) == _EVENTS


def test_what_a_peer_says_of_itself_names_its_program() -> None:
    """The documentation shows where the program is, and its versions."""
    for peer in PYTHON_PEERS:
        program = peer.configuration().partition(":")[0]
        assert program.startswith("benchmarks/peers/")
        assert program.endswith(".py")
        if peer.missing() is None:
            assert peer.version()


def test_a_pong_carries_the_payload_of_its_ping() -> None:
    """Servers that put something into their pings cut a client that does not give it back."""
    ((opcode, payload),), rest = split_frames(b"\x89\x04abcd")
    assert (opcode, rest) == (9, b"")
    assert pong(payload) == b"\x8a\x84\x00\x00\x00\x00abcd"
