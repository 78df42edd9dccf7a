"""Flood: one publisher sends as fast as it can, and nothing may be lost or change places.

As many events as a server takes in a few seconds, and how long the last of them needs to reach the
last subscriber. The publisher stays within a lead of the slowest subscriber: half a second of what
this server has managed so far, so that a slow one is soon done as well, and at most `_LEAD` events.
That many lie in the kernel's buffers without its memory limits being reached; and it is what a
server that drops or cuts whoever is behind must have room for, wherever it keeps it.
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
_AT_ONCE: Final = 50  # events handed over together: below 16 KB, whatever they are wrapped in
_LEAD: Final = 4_000  # events: about half a megabyte a subscriber
_LEAST: Final = 2 * _AT_ONCE  # with less, nothing would be under way while more is made
_AHEAD: Final = 0.5  # seconds
_PATIENCE: Final = 30.0  # seconds for what is under way when the publisher stops
_QUIET: Final = 0.1  # seconds in which something doubled would still arrive


def flood(peer: Peer, *, seconds: float, subscribers: int = _SUBSCRIBERS) -> Turn:
    """One turn: publish for so many seconds, then wait for everybody to have everything."""
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
    """How many events may be under way to a subscriber that received so many in so many seconds."""
    pace = received / max(elapsed, _AHEAD)
    return min(_LEAD, max(_LEAST, int(pace * _AHEAD)))


def publish(streams: Streams, publisher: Publisher, seconds: float) -> None:
    """Send what the server takes, within the lead."""
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
    """Wait until every event arrived everywhere, and every answer."""
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
        f"{_LEAD:,} events and half a second ahead of the slowest of {_SUBSCRIBERS:,} subscribers; "
        f"{EVENT_SIZE} bytes each, and every one checked at every subscriber. Deliveries by the "
        "time until the last one.",
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
