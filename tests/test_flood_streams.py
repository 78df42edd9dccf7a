"""The flood's checking: a benchmark that cannot fail proves nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.generator.load import Crowd
from benchmarks.generator.streams import Streams
from benchmarks.generator.wire import WireError, event, pong, server_frame
from benchmarks.peers.floors import FLOOR_PYTHON
from benchmarks.workloads.flood import flood, lead

_EVENTS = 12
_PING = b"\x89\x02hi"
_IN_ORDER = list(range(_EVENTS))


@contextmanager
def subscribed(count: int, *, framed: bool = True) -> Iterator[tuple[Streams, list[socket.socket]]]:
    """So many subscribers that must get 12 events, and the server's ends of their connections."""
    with Crowd(0) as crowd, ExitStack() as stack:
        ends = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.settimeout(1)
            crowd.sockets[ours.fileno()] = ours
            crowd.poller.register(ours.fileno(), 1)
            ends.append(stack.enter_context(theirs))
        streams = Streams(crowd, framed=framed)
        assert streams.expect(_EVENTS) == [event(number) for number in range(_EVENTS)]
        yield streams, ends


def frames(numbers: Iterable[int]) -> bytes:
    return b"".join(server_frame(event(number)) for number in numbers)


def nats(groups: Iterable[Sequence[int]]) -> bytes:
    """Frames as NATS makes them: a head before each message, several messages in a frame."""
    return b"".join(
        server_frame(b"".join(b"MSG news 1 136\r\n%s\r\n" % event(n) for n in group))
        for group in groups
    )


def feed(streams: Streams, end: socket.socket, data: bytes, cuts: Iterable[int] = ()) -> None:
    """Send `data` in pieces, each of which is read before the next."""
    start = 0
    for cut in sorted({*(cut for cut in cuts if 0 < cut < len(data)), len(data)}):
        end.sendall(data[start:cut])
        streams.pump(1)
        start = cut


_cuts = st.lists(st.integers(1, 2_000), max_size=8)
_groups = st.lists(st.integers(1, 5), min_size=_EVENTS, max_size=_EVENTS)


def grouped(sizes: Iterable[int]) -> list[list[int]]:
    """All events in order, so many in each group."""
    numbers = iter(_IN_ORDER)
    groups = [list(islice(numbers, size)) for size in sizes]
    return [group for group in groups if group]


@given(
    shapes=st.lists(st.tuples(_groups, _cuts, st.integers(0, 3)), min_size=2, max_size=4),
    plain=st.booleans(),
)
def test_every_framing_passes(
    shapes: list[tuple[list[int], list[int], int]], *, plain: bool
) -> None:
    """However the events are framed, cut by TCP and mixed with pings, for each subscriber."""
    with subscribed(len(shapes)) as (streams, ends):
        for end, (sizes, cuts, pings) in zip(ends, shapes, strict=True):
            groups = grouped([1] * _EVENTS if plain else sizes)
            parts = [frames(group) if plain else nats([group]) for group in groups]
            for place in range(pings):
                parts.insert(place * 2, _PING)
            feed(streams, end, b"".join(parts), cuts)
            if pings:
                assert end.recv(100) == pong(b"hi") * pings
        assert streams.received == _EVENTS


def faulty(numbers: Sequence[int], *, common: bool, groups: bool) -> None:
    """One subscriber gets this; with `common`, after another that got what is due."""
    with subscribed(2) as (streams, (first, second)):
        if common:
            feed(streams, first, frames(_IN_ORDER))
        feed(streams, second, nats([numbers]) if groups else frames(numbers))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [
        [0, 1, 2, 4, 5],
        [0, 1, 2, 2, 3],
        [0, 1, 3, 2, 4],
        [1, 2, 3],
        [*_IN_ORDER, _EVENTS - 1],
        [*_IN_ORDER, _EVENTS],
    ],
    ids=["lost", "doubled", "misplaced", "first lost", "last doubled", "never published"],
)
def test_faults_are_found(numbers: list[int], *, common: bool, groups: bool) -> None:
    """Be they in the stream that is parsed or in one that is compared, alone in a frame or not."""
    with pytest.raises(WireError, match="lost, doubled or out of order"):
        faulty(numbers, common=common, groups=groups)


def test_what_is_missing_at_the_end_is_seen() -> None:
    """All subscribers count, not the first alone; half an event does not count."""
    with subscribed(2) as (streams, (first, second)):
        feed(streams, first, frames(_IN_ORDER))
        feed(streams, second, frames(_IN_ORDER)[:-1])
        assert streams.received == _EVENTS - 1
        feed(streams, second, frames(_IN_ORDER)[-1:])
        assert streams.received == streams.expected == _EVENTS


@pytest.mark.parametrize("common", [False, True])
def test_an_altered_event_is_a_lost_one(*, common: bool) -> None:
    """Every byte of an event is looked at."""
    data = frames(_IN_ORDER)
    data = data[:130] + b"y" + data[131:]
    with subscribed(2) as (streams, (first, second)):
        if common:
            feed(streams, first, frames(_IN_ORDER))
        with pytest.raises(WireError, match="lost"):
            feed(streams, second, data)


def test_server_sent_events_are_parsed() -> None:
    """They have no frames; the rule is the same."""
    texts = [b"id: %d\ndata: %s\n\n" % (number, event(number)) for number in _IN_ORDER]
    with subscribed(2, framed=False) as (streams, (first, second)):
        streams._crowd._stream = True
        feed(streams, first, b"".join(texts), [5, 200, 1_000])
        feed(streams, second, b"".join(texts[:5]))
        assert streams.received == 5
        with pytest.raises(WireError, match="lost"):
            feed(streams, second, b"".join(texts[6:]))


def test_a_subscriber_that_was_cut_is_seen() -> None:
    """A server that hangs up on the slow fails the flood."""
    with subscribed(1) as (streams, (end,)):
        end.close()
        with pytest.raises(WireError, match="hung up"):
            streams.pump(1)


def test_the_lead_follows_the_pace() -> None:
    """Half a second of what a server manages, within bounds: 100 events at 50/s, 4,000 at most."""
    assert lead(0, 0) == 100
    assert lead(50, 1) == 100
    assert lead(4_000, 2) == 1_000
    assert lead(90_000, 3) == 4_000


def test_a_flood_of_the_floor() -> None:
    """A whole turn against a real process: everything arrives, and is counted."""
    turn = flood(FLOOR_PYTHON, seconds=0.2, subscribers=10)
    assert turn.values["rate"] > 0
    assert turn.values["cpu_us"] > 0
    assert 0 < turn.generator <= 1
