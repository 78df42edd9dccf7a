"""Memory: resident bytes that one idle connection adds to the server.

A fresh server for each kind. A first crowd comes and goes before the baseline is taken, so that
what is loaded and allocated once does not count.
"""

from __future__ import annotations

from typing import Final

from benchmarks.figures import Figure, Plan, Target
from benchmarks.load import CENTRIFUGO, PLAIN, Crowd, Greeting
from benchmarks.servers import SERVICE, running

_WARM_UP: Final = 200
_SETTLE: Final = 1.0  # seconds
_ORIGIN: Final = (
    "a prototype with a plain socket and no parser kept for an idle client measured 4.7 KiB; the "
    "client, its outbox and its place in hub and heartbeat come on top"
)


def memory(plan: Plan) -> list[Figure]:
    """Idle plain subscribers, and idle Centrifugo clients with one channel."""
    count = plan.of(5_000, 1_000)
    return [
        _grow("memory-plain", "an idle plain subscriber", PLAIN, count, 8.0),
        _grow("memory-centrifugo", "an idle client with one channel", CENTRIFUGO, count, 11.0),
    ]


def _grow(name: str, what: str, greeting: Greeting, count: int, limit: float) -> Figure:
    with running(SERVICE) as child:
        with Crowd(child.port) as first:
            first.open(_WARM_UP, greeting)
            first.idle(_SETTLE)
            first.close(reset=False)
            first.idle(_SETTLE)
        before = child.rss()
        with Crowd(child.port) as crowd:
            crowd.open(count, greeting)
            crowd.idle(_SETTLE)
            after = child.rss()
    return Figure(
        name=name,
        what=f"resident memory of {what}",
        value=(after - before) / count / 1_024,
        unit="KiB",
        target=Target(limit=limit, side="at most", origin=_ORIGIN),
        detail={
            "connections": count,
            "baseline_mib": before / 1_048_576,
            "full_mib": after / 1_048_576,
        },
    )
