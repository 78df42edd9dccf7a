"""The claims about durable history, Valkey and workers, beside one process and its memory.

Prototypes were measured before anything was built; a claim is a little above what they reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from benchmarks.claim import Claim
from benchmarks.peers.engines import WORKERS

_MEMORY: Final = "repeater-memory"


def _times(
    server: str,
    workload: str,
    metric: str,
    side: Literal["at most", "at least"],
    limit: float,
    origin: str,
) -> Claim:
    """Claim a value of so many times the same server's with one process and its memory."""
    return Claim(
        workload=workload,
        metric=metric,
        limit=limit,
        side=side,
        origin=origin,
        server=f"repeater-{server}",
        against=_MEMORY,
    )


_STREAM: Final[Sequence[tuple[str, float, Literal["at most", "at least"], str]]] = (
    ("event_us", 22.0, "at most", "a prototype needed 14 to 15 us beside one script for each"),
    ("engine_us", 12.0, "at most", "a prototype measured 9.5 to 10.5 us in scripts of many"),
    ("together", 10.0, "at least", "fewer in a script cost the engine up to 20 us each"),
)

ENGINE_CLAIMS: Final[Sequence[Claim]] = (
    _times(
        "durable",
        "durable-calls",
        "call_us",
        "at most",
        1.25,
        "a prototype measured 1.07 to 1.25: a commit is shared by the calls that gather meanwhile",
    ),
    _times(
        "durable",
        "durable-stream",
        "rate",
        "at least",
        0.5,
        "a prototype measured 0.6, fsynced",
    ),
    Claim(
        workload="durable-call",
        metric="publish_p50_ms",
        limit=0.1,
        side="at most",
        origin="one publisher that waits for each answer waits for a commit, and for little else",
        server="repeater-durable",
        over=(_MEMORY, "commits"),
    ),
    Claim(
        workload="durable-restart",
        metric="added_s",
        limit=3.0,
        side="at most",
        origin="a prototype measured 2.6 s",
        server="repeater-durable",
    ),
    Claim(
        workload="durable-restart",
        metric="added_mb",
        limit=320.0,
        side="at most",
        origin="a prototype measured 285 MB",
        server="repeater-durable",
    ),
    _times(
        "valkey",
        "valkey-calls",
        "call_us",
        "at most",
        1.2,
        "a prototype needed 8 to 10 us more: what comes together goes in one script",
    ),
    *(
        Claim(
            workload="valkey-stream",
            metric=metric,
            limit=limit,
            side=side,
            origin=origin,
            server="repeater-valkey",
        )
        for metric, limit, side, origin in _STREAM
    ),
    Claim(
        workload="valkey-call",
        metric="publish_p50_ms",
        limit=0.1,
        side="at most",
        origin="one publisher that waits for each answer waits for one script, and for little else",
        server="repeater-valkey",
        over=(_MEMORY, "evalsha"),
    ),
    *(
        Claim(
            workload="valkey-storm",
            metric=metric,
            limit=0.0,
            side="at most",
            origin="the other node reads what they missed, once and in order",
            server="repeater-valkey",
        )
        for metric in ("lost", "doubled", "misplaced")
    ),
    *(
        _times(
            "workers",
            f"workers-fanout-{subscribers}",
            "cpu_us",
            "at most",
            1.05,
            "an event costs some 10 us more in all, and a delivery nothing",
        )
        for subscribers in (1_000, 9_000)
    ),
    _times(
        "workers",
        "workers-stream",
        "supervisor_us",
        "at most",
        1.1,
        "a prototype's supervisor needed 4.3 to 5.7 us where one process needs 5.5 to 6",
    ),
    _times(
        "workers",
        "workers-stream",
        "event_us",
        "at most",
        2.4,
        "the supervisor and two workers that each take in every event",
    ),
    _times(
        "workers",
        "workers-call",
        "publish_p50_ms",
        "at most",
        4.0,
        "a prototype measured 0.5 ms where one process needs 0.13",
    ),
    _times(
        "workers",
        "workers-storm",
        "connection_us",
        "at most",
        1.3,
        "limits and presence ask the supervisor",
    ),
    _times(
        "workers",
        "workers-storm",
        "rate",
        "at least",
        1.3,
        "two cores share the work, and one of them also with the load generator",
    ),
    Claim(
        workload="workers-spread",
        metric="spread",
        limit=1.1,
        side="at most",
        origin="a prototype measured 1.03 with SO_REUSEPORT",
        server="repeater-workers",
    ),
    _times(
        "workers",
        "workers-last",
        "written_ms",
        "at most",
        0.65,
        "each of two workers writes half",
    ),
    Claim(
        workload="workers-memory",
        metric="private_mb",
        limit=60.0 * WORKERS,
        side="at most",
        origin="60 MB for each worker; a prototype measured 58",
        server="repeater-workers",
        over=(_MEMORY,),
    ),
)
