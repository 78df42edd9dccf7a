"""Publish: REST calls on one keep-alive connection, with nobody subscribed.

`publish` and `batch` are closed loops, each request after the answer to the last; `stream` is one
request whose body never waits for anything but TCP.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.figures import Figure, Plan, Target, median, percentile
from benchmarks.publishers import Rest
from benchmarks.servers import SERVICE, running
from benchmarks.wire import CHANNEL, WireError, event, request

_WARM_UP: Final = 200
_ITEMS: Final = 100  # events in one batch: what a back end gathers in some ten milliseconds
_SECONDS: Final = 60.0  # for one answer


def publish(plan: Plan) -> list[Figure]:
    """A closed loop of `POST /api/publish`."""
    count, rounds = plan.of(5_000, 1_000), plan.of(3, 1)
    rates, latencies, cpu = list[float](), list[int](), list[float]()
    for _ in range(rounds):
        with running(SERVICE) as child, contextlib.closing(Rest(child.port)) as rest:
            _loop(rest, _WARM_UP)
            rest.latencies_ns.clear()
            spent, start = child.cpu_ns(), time.monotonic()
            _loop(rest, count)
            rates.append(count / (time.monotonic() - start))
            cpu.append((child.cpu_ns() - spent) / 1e3 / count)
            latencies += rest.latencies_ns
    origin = (
        "a bare Quart-Trio route under Hypercorn answers 1,720 requests a second on this kind of "
        "machine, so half as many again is what the native path must bring"
    )
    return [
        Figure(
            name="publish",
            what="POST /api/publish a second, one connection",
            value=median(rates),
            unit="/s",
            target=Target(limit=2_500, side="at least", origin=origin),
            detail={
                "requests": count,
                "p50_ms": percentile(latencies, 50) / 1e6,
                "p99_ms": percentile(latencies, 99) / 1e6,
                "server_cpu_us": median(cpu),
                "rounds": rates,
            },
        )
    ]


def _loop(rest: Rest, count: int) -> None:
    for number in range(count):
        rest.publish(event(number))
        rest.wait()


def batch(plan: Plan) -> list[Figure]:
    """A closed loop of `POST /api/batch`."""
    count = plan.of(60_000, 10_000)
    items = [b'{"publish":%s}' % _body(number) for number in range(count)]
    requests = [
        request("/api/batch", b'{"commands":[%s]}' % b",".join(items[start : start + _ITEMS]))
        for start in range(0, count, _ITEMS)
    ]
    reply = b'{"replies":[{"publish":{"offset":'
    return [
        _measure(
            plan,
            "batch",
            f"events a second by POST /api/batch, {_ITEMS} in each, one connection",
            count,
            30_000,
            requests,
            lambda body: body.startswith(reply) and b'"error"' not in body,
        )
    ]


def stream(plan: Plan) -> list[Figure]:
    """One `POST /api/stream`."""
    count = plan.of(200_000, 50_000)
    body = b"".join(_body(number) + b"\n" for number in range(count))
    summary = b'{"result":{"accepted":%d,"failed":0,"errors":[]}}' % count
    return [
        _measure(
            plan,
            "stream",
            "events a second by POST /api/stream, one request",
            count,
            50_000,
            [request("/api/stream", body)],
            lambda body: body == summary,
        )
    ]


def _body(number: int) -> bytes:
    return b'{"channel":"%s","data":%s}' % (CHANNEL.encode(), event(number))


def _measure(
    plan: Plan,
    name: str,
    what: str,
    count: int,
    limit: float,
    requests: Sequence[bytes],
    right: Callable[[bytes], bool],
) -> Figure:
    """Send the requests one after the other, `count` events in all; every answer is checked."""
    rates, cpu = list[float](), list[float]()
    for _ in range(plan.of(3, 1)):
        with (
            running(SERVICE) as child,
            socket.create_connection(("127.0.0.1", child.port), _SECONDS) as sock,
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            spent, start = child.cpu_ns(), time.monotonic()
            for one in requests:
                sock.sendall(one)
                if not right(body := _answer(sock)):
                    raise WireError(f"{name} failed: {body[:200]!r}")
            rates.append(count / (time.monotonic() - start))
            cpu.append((child.cpu_ns() - spent) / 1e3 / count)
    origin = "what a back end's change feed brings at its busiest, on one connection"
    return Figure(
        name=name,
        what=what,
        value=median(rates),
        unit="/s",
        target=Target(limit=limit, side="at least", origin=origin),
        detail={
            "events": count,
            "requests": len(requests),
            "server_cpu_us": median(cpu),
            "rounds": rates,
        },
    )


def _answer(sock: socket.socket) -> bytes:
    """The body of the next answer."""
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
