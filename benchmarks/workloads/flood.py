"""Flood: one publisher sends as fast as it can, and no event may be lost or change its place.

The publisher sends as many events as the server takes in a few seconds, and the turn lasts until
the last event has reached the last subscriber. The publisher's lead over the slowest subscriber is
bounded: half a second of this server's pace so far, so that a slow server is soon done as well, and
at most `_LEAD` events. The kernel's buffers hold so many events within the memory limits. A server
that drops events of slow subscribers, or cuts them, must have room for so many too.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.streams import MOST_EVENTS, Streams
from benchmarks.generator.wire import CHANNEL, EVENT_SIZE, WireError
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.workload import Workload

_SUBSCRIBERS: Final = 1_000
_AT_ONCE: Final = 50  # events sent together: below 16 KB in any framing
_LEAD: Final = 4_000  # events: about half a megabyte a subscriber
_LEAST: Final = 2 * _AT_ONCE  # with less, no event is under way while more are made
_AHEAD: Final = 0.5  # seconds
_PATIENCE: Final = 30.0  # seconds for the events under way when the publisher stops
_QUIET: Final = 0.1  # seconds in which a doubled event would still arrive


def flood(peer: Peer, *, seconds: float, subscribers: int = _SUBSCRIBERS) -> Turn:
    """One turn: publish for so many seconds, then wait until all have every event."""
    greeting = peer.subscribe([CHANNEL])
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(subscribers, greeting)
        if peer.quiet_first:
            crowd.settle()
        with contextlib.closing(Publisher(child.port, peer.flooding([CHANNEL]))) as publisher:
            streams = Streams(crowd, framed=not greeting.stream)
            streams.watch(publisher)
            child.reset_peak()
            cpu, start = child.cpu_ns(), time.monotonic()
            streams.busy.begin()
            publish(streams, publisher, seconds)
            finish(streams, publisher, _PATIENCE)
            streams.busy.end()
            took, spent = time.monotonic() - start, child.cpu_ns() - cpu
            _hear_no_more(streams)
        deliveries = streams.expected * subscribers
        return Turn(
            values={
                "rate": deliveries / took,
                "cpu_us": spent / 1e3 / deliveries,
                "peak_mib": child.peak_rss() / 1_048_576,
            },
            generator=streams.busy.share,
        )


def lead(received: int, elapsed: float) -> int:
    """Return the events that may be under way, after so many `received` in `elapsed` seconds."""
    pace = received / max(elapsed, _AHEAD)
    return min(_LEAD, max(_LEAST, int(pace * _AHEAD)))


def publish(streams: Streams, publisher: Publisher, seconds: float) -> None:
    """Send as much as the server takes, within the lead."""
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        publisher.go_on()
        received = streams.received
        most = min(received + lead(received, elapsed), MOST_EVENTS) - _AT_ONCE
        while not publisher.blocked and publisher.sent <= most:
            events = streams.expect(_AT_ONCE)
            publisher.send(publisher.encode(events, publisher.sent), _AT_ONCE)
        streams.pump(0.01)


def finish(streams: Streams, publisher: Publisher, patience: float) -> None:
    """Wait until every event arrived everywhere, and every answer arrived."""
    deadline = time.monotonic() + patience
    while streams.received < streams.expected or publisher.waiting:
        if time.monotonic() > deadline:
            raise WireError(
                f"a subscriber has {streams.received} of {streams.expected} events "
                f"{patience:g} s after the last was published"
            )
        publisher.go_on()
        streams.pump(0.01)


def _hear_no_more(streams: Streams) -> None:
    deadline = time.monotonic() + _QUIET
    while (left := deadline - time.monotonic()) > 0:
        streams.pump(left)


WORKLOADS: Final = (
    Workload(
        name="flood",
        title=f"Flood to {_SUBSCRIBERS:,}",
        description="One connection publishes as fast as the server takes it, at most "
        f"{_LEAD:,} events and half a second ahead of the slowest of {_SUBSCRIBERS:,} subscribers. "
        f"Each event has {EVENT_SIZE} bytes and is checked at every subscriber. The rate is the "
        "deliveries divided by the time until the last one.",
        group="Throughput",
        measure=lambda peer, plan: flood(peer, seconds=plan.of(2, 1)),
        metrics={
            "rate": Metric("deliveries a second", "/s", "higher", "per second"),
            "peak_mib": Metric("most resident memory of the server", "MiB", short="peak MiB"),
        },
        beside=("floor", "floor-python"),
        subscribers=_SUBSCRIBERS,
        core=True,
    ),
)
