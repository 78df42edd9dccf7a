"""Publish: HTTP calls on one keep-alive connection, without subscribers.

`publish` is a closed loop: each call follows the answer to the last, on every server that answers
calls. `batch` and `stream` are Repeater's own: a closed loop of requests with many events in each,
and one request whose body waits only for TCP.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import CHANNEL, WireError, event, request
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.workload import Plan, Workload, distribution, percentile_ms

_WARM_UP: Final = 200
_ITEMS: Final = 100  # events in one batch: a back end gathers as many in some ten milliseconds
_ANSWER_SECONDS: Final = 60.0


def publish(peer: Peer, *, seconds: float) -> Turn:
    """One turn: calls, one after the other, for so many seconds."""
    with (
        started(peer) as child,
        contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]))) as publisher,
    ):
        for number in range(_WARM_UP):
            _call(publisher, number)
        publisher.latencies_ns.clear()
        busy, cpu, start = Busy(), child.cpu_ns(), time.monotonic()
        busy.begin()
        count = 0
        while time.monotonic() - start < seconds:
            _call(publisher, count)
            count += 1
        busy.end()
        took, spent = time.monotonic() - start, child.cpu_ns() - cpu
        return Turn(
            values={
                "rate": count / took,
                "publish_p50_ms": percentile_ms(publisher.latencies_ns, 50),
                "publish_p99_ms": percentile_ms(publisher.latencies_ns, 99),
                "call_us": spent / 1e3 / count,
            },
            histograms={"publish": distribution(publisher.latencies_ns)},
            generator=busy.share,
        )


def _call(publisher: Publisher, number: int) -> None:
    publisher.publish(event(number))
    publisher.wait()


def batch(peer: Peer, plan: Plan) -> Turn:
    """One turn of `POST /api/batch`, in a closed loop."""
    count = plan.of(60_000, 10_000)
    items = [b'{"publish":%s}' % line(CHANNEL, number) for number in range(count)]
    requests = [
        request("/api/batch", b'{"commands":[%s]}' % b",".join(items[start : start + _ITEMS]))
        for start in range(0, count, _ITEMS)
    ]
    reply = b'{"replies":[{"publish":{"offset":'
    return _ingest(
        peer, count, requests, lambda body: body.startswith(reply) and b'"error"' not in body
    )


def stream(peer: Peer, plan: Plan, channels: Sequence[str] = (CHANNEL,)) -> Turn:
    """One turn of a single `POST /api/stream`, its events spread over the channels."""
    count = plan.of(200_000, 50_000)
    return _ingest(peer, count, [lines(channels, count)], lambda body: body == accepted(count))


def lines(channels: Sequence[str], count: int) -> bytes:
    """Return a `POST /api/stream` request with so many events, spread over the channels."""
    channel = itertools.cycle(channels)
    return request(
        "/api/stream", b"".join(line(next(channel), number) + b"\n" for number in range(count))
    )


def accepted(count: int) -> bytes:
    """Return the answer to such a request that lost nothing."""
    return b'{"result":{"accepted":%d,"failed":0,"errors":[]}}' % count


def line(channel: str, number: int) -> bytes:
    """Return the JSON that publishes one event."""
    return b'{"channel":"%s","data":%s}' % (channel.encode(), event(number))


def _ingest(
    peer: Peer, count: int, requests: Sequence[bytes], right: Callable[[bytes], bool]
) -> Turn:
    """Send the requests one after the other, `count` events in all; every answer is checked."""
    with (
        started(peer) as child,
        socket.create_connection(("127.0.0.1", child.port), _ANSWER_SECONDS) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        busy, cpu, start = Busy(), child.cpu_ns(), time.monotonic()
        busy.begin()
        for one in requests:
            if not right(body := ask(sock, one)):
                raise WireError(f"unexpected answer: {body[:200]!r}")
        busy.end()
        took, spent = time.monotonic() - start, child.cpu_ns() - cpu
        return Turn(
            values={"rate": count / took, "event_us": spent / 1e3 / count},
            generator=busy.share,
        )


def ask(sock: socket.socket, whole: bytes) -> bytes:
    """Send a whole request, and return the body of its answer."""
    sock.sendall(whole)
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].split()[0]):
            if not head.startswith(b"HTTP/1.1 200"):
                raise WireError(f"refused: {received[:200]!r}")
            return body
        if not (data := sock.recv(262_144)):
            raise WireError("the server closed the publisher's connection")
        received += data


RATE: Final = Metric("events a second", "/s", "higher", "per second")
EVENT: Final = Metric("server CPU per event", "us", short="CPU us")

WORKLOADS: Final = (
    Workload(
        name="publish",
        title="Publish calls",
        description="One connection publishes one event a call, each after the answer to the "
        "last; nobody is subscribed.",
        group="Publishing",
        measure=lambda peer, plan: publish(peer, seconds=plan.of(2, 1)),
        metrics={"rate": Metric("calls a second", "/s", "higher", "per second")},
        needs=frozenset({"calls"}),
        core=True,
    ),
    Workload(
        name="batch",
        title="Batches",
        description=f"One connection, {_ITEMS} events a call, each after the answer to the last.",
        group="Publishing",
        measure=batch,
        metrics={"rate": RATE, "event_us": EVENT},
        only=("repeater",),
    ),
    Workload(
        name="stream",
        title="Stream ingest",
        description="One request whose body is a line for each event.",
        group="Publishing",
        measure=stream,
        metrics={"rate": RATE, "event_us": EVENT},
        only=("repeater",),
    ),
)
