"""Flood: one publisher sends as fast as it can, and nothing may be lost or change places.

One Centrifugo WebSocket, many publish commands a message, replies read but not waited for. The
publisher stays within `_LEAD` events of the subscribers, so that the kernel's buffers, not its
memory limit, are what is filled. Every byte of every subscriber is compared.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

from benchmarks.figures import Figure, Plan, Target, median
from benchmarks.load import PLAIN, Crowd
from benchmarks.publishers import Pipeline
from benchmarks.receivers import Streams
from benchmarks.servers import SERVICE, running
from benchmarks.wire import WireError, event, server_frame

_SUBSCRIBERS: Final = 1_000
_COMMANDS: Final = 50  # in one message: about 10 KB, far below the server's limit of 64 KiB
_LEAD: Final = 4_000  # events: about half a megabyte a subscriber
_SECONDS: Final = 90.0


def flood(plan: Plan) -> list[Figure]:
    """As many events as one connection takes, to 1,000 plain subscribers."""
    events, rounds = plan.of(20_000, 4_000), plan.of(3, 1)
    results = [_flood(events) for _ in range(rounds)]
    rates = [rate for rate, _ in results]
    origin = (
        "a Trio prototype measured 815,000 to 826,000 on a 2-core machine; a quarter less is "
        "allowed for positions, bounds and history"
    )
    return [
        Figure(
            name="flood",
            what="deliveries a second, complete and in order",
            value=median(rates),
            unit="/s",
            target=Target(limit=600_000, side="at least", origin=origin),
            detail={
                "events": events,
                "subscribers": _SUBSCRIBERS,
                "events_per_second": median(rates) / _SUBSCRIBERS,
                "server_cpu_us": median(cpu for _, cpu in results),
                "rounds": rates,
                "lead": _LEAD,
            },
        )
    ]


def _flood(events: int) -> tuple[float, float]:
    """Deliveries a second, and the server's CPU per delivery in microseconds."""
    payloads = [event(number) for number in range(events)]
    frames = [
        Pipeline.frame(payloads[first : first + _COMMANDS], first + 2)
        for first in range(0, events, _COMMANDS)
    ]
    stream = b"".join(map(server_frame, payloads))
    with running(SERVICE) as child, Crowd(child.port) as crowd:
        crowd.open(_SUBSCRIBERS, PLAIN)
        with contextlib.closing(Pipeline(child.port)) as publisher:
            crowd.poller.register(publisher.fileno(), 1)  # EPOLLIN
            streams = Streams(crowd, stream, len(stream) // events)
            cpu, start = child.cpu_ns(), time.monotonic()
            while streams.received < streams.wanted or publisher.answered < events:
                if time.monotonic() - start > _SECONDS:
                    missing = (streams.wanted - streams.received) // (len(stream) // events)
                    raise WireError(f"{missing} deliveries missing after {_SECONDS:.0f} s")
                _send_more(publisher, streams, frames)
                streams.pump(publisher, 0.01)
            seconds = time.monotonic() - start
            deliveries = events * _SUBSCRIBERS
            return deliveries / seconds, (child.cpu_ns() - cpu) / 1e3 / deliveries


def _send_more(publisher: Pipeline, streams: Streams, frames: list[bytes]) -> None:
    publisher.go_on()
    sent = publisher.sent
    while (
        not publisher.blocked and sent < len(frames) * _COMMANDS and sent - streams.events < _LEAD
    ):
        publisher.send(frames[sent // _COMMANDS], _COMMANDS)
        sent = publisher.sent
