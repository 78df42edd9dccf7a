"""Accept: connections a second, from the TCP handshake to the 101 of a subscribed client.

Next to a bare Trio server that knows no WebSocket, in alternation.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figure, Plan, Target, median
from benchmarks.load import PLAIN, Crowd
from benchmarks.servers import BARE_TRIO, SERVICE, running


def accept(plan: Plan) -> list[Figure]:
    """5,000 connections, 200 under way at a time."""
    count, rounds = plan.of(5_000, 2_000), plan.of(3, 1)
    bare, service = list[float](), list[float]()
    for _ in range(rounds):
        bare.append(_rate(BARE_TRIO, count))
        service.append(_rate(SERVICE, count))
    ratio = median(ours / floor for ours, floor in zip(service, bare, strict=True))
    origin = (
        "a prototype with its own accept loop measured 8,600 on a 2-core machine, bare Trio with "
        "a SocketStream 6,000; a real handshake's checks cost some 40 us"
    )
    return [
        Figure(
            name="accept",
            what="connections a second, handshake and subscription included",
            value=median(service),
            unit="/s",
            floor=median(bare),
            ratio=ratio,
            target=Target(limit=5_000, side="at least", origin=origin),
            alternative=Target(limit=0.8, side="at least", origin="times bare Trio, same run"),
            detail={"connections": count, "rounds": service, "rounds_bare_trio": bare},
        )
    ]


def _rate(command: Sequence[str], count: int) -> float:
    with running(command) as child, Crowd(child.port) as crowd:
        crowd.open(100, PLAIN)
        return count / crowd.open(count, PLAIN, at_once=200)
