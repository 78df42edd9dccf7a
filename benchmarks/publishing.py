"""Publish: REST calls a second on one keep-alive connection, each after the answer to the last."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from benchmarks.figures import Figure, Plan, Target, median, percentile
from benchmarks.publishers import Rest
from benchmarks.servers import SERVICE, running
from benchmarks.wire import event

_WARM_UP: Final = 200


def publish(plan: Plan) -> list[Figure]:
    """A closed loop of `POST /api/publish`, with nobody subscribed."""
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
        "a prototype that hands connections to Hypercorn measured 3,400 requests a second on a "
        "2-core machine; parsing and publishing take the rest"
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
