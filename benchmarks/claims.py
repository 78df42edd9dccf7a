"""The claims of Repeater about itself; each run judges the claims that it measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.claim import Claim
from benchmarks.engine_claims import ENGINE_CLAIMS
from benchmarks.model import Run
from benchmarks.protobuf_claims import PROTOBUF_CLAIMS
from benchmarks.workloads import hostile
from benchmarks.workloads.workload import Workload

_PROTOTYPE: Final = (
    "a Trio prototype that writes straight from the repeater task measured 1.15 to 1.25 x floor "
    "on a 2-core machine (8.0-8.9 us against 6.8-7.7 us)"
)
_PUSHED: Final = f"{_PROTOTYPE}; 0.1 more than 1.35 is allowed for encoding the push"
_STREAMED: Final = f"{_PROTOTYPE}; more is allowed: an event has an id and more bytes than a frame"
_FASTEST: Final = "many people take this server, C++ under Python, for the fastest"
_IDLE: Final = (
    "a prototype with a plain socket and no parser kept for an idle client measured 4.7 KiB; the "
    "client, its outbox and its place in hub and heartbeat come on top"
)


def _fanout(workload: str, limit: float, origin: str, server: str = "repeater") -> Claim:
    return Claim(
        workload=workload,
        metric="cpu_us",
        limit=limit,
        side="at most",
        origin=origin,
        server=server,
        against="floor",
    )


def _storm(workload: str) -> tuple[Claim, ...]:
    """Claim a return within 3 times the bare handshakes' time, and no fault in any event."""
    ratio = Claim(
        workload=workload,
        metric="seconds",
        limit=3.0,
        side="at most",
        origin="measured on a 2-core machine: 2.0 to 2.5 x the CPU of bare Trio, of which the "
        "checked handshake is 1.25; the rest is two commands, the objects of a client and its "
        "subscription, and a reply with 20 publications. A fifth is added for other programs",
        against="bare-trio",
    )
    faults = (
        Claim(
            workload=workload,
            metric=metric,
            limit=0,
            side="at most",
            origin="recovery promises it",
            worst=True,
        )
        for metric in ("lost", "doubled", "misplaced")
    )
    return ratio, *faults


def _ingest(workload: str, limit: float) -> Claim:
    return Claim(
        workload=workload,
        metric="rate",
        limit=limit,
        side="at least",
        origin="a back end's busiest change feed brings as much on one connection",
    )


def _prompt(workload: str, against: str) -> Claim:
    return Claim(
        workload=workload,
        metric="last_p50_ms",
        limit=1.0,
        side="at most",
        origin="a subscriber must not wait longer than with a server in C or C++",
        against=against,
    )


def _hostile(workload: Workload) -> Iterator[Claim]:
    """Claim that honest subscribers and health checks hardly notice a flood."""
    limits: Sequence[tuple[str, float, str, bool]] = (
        ("p99_ratio", 3.0, "an honest subscriber may notice a flood, and must not mind it", False),
        ("health_p99_ms", 100.0, "a load balancer's check must not time out under a flood", False),
        ("grown_mib", 64.0, "a container's limit has as much room", False),
        ("kept_mib", 16.0, "nothing may stay but what the allocator keeps", False),
        ("lost", 0.0, "a flood costs latency, and no event", True),
        ("ended", 0.0, "a flood costs latency, and no connection", True),
    )
    for metric, limit, origin, worst in limits:
        yield Claim(
            workload=workload.name,
            metric=metric,
            limit=limit,
            side="at most",
            origin=origin,
            server=workload.only[0],
            worst=worst,
        )


CLAIMS: Final[Sequence[Claim]] = (
    # Fan-out, and the other ways to subscribe to it.
    _fanout("fanout-1000", 1.15, _PROTOTYPE),
    _fanout("fanout-1000", 1.45, _PUSHED, "repeater-centrifugo"),
    _fanout("fanout-1000", 1.45, _PUSHED, "repeater-recovery"),
    _fanout("fanout-1000", 1.45, _PUSHED, "repeater-presence"),
    _fanout("fanout-1000", 1.5, _STREAMED, "repeater-sse"),
    _fanout("fanout-9000", 1.15, _PROTOTYPE),
    _prompt("fanout-1000", "uwebsockets"),
    _prompt("fanout-1000", "nchan"),
    _prompt("fanout-9000", "uwebsockets"),
    _prompt("fanout-9000", "nchan"),
    # Slow readers.
    Claim(
        workload="slow-1",
        metric="slow_ratio",
        limit=1.1,
        side="at most",
        origin="a full outbox costs one failed append; the rest is noise of two cores",
    ),
    # Mixed.
    Claim(
        workload="mixed-9000",
        metric="publish_p99_ms",
        limit=30,
        side="at most",
        origin="fan-out yields every 1 ms; a call takes some ten turns of the loop, and a user "
        "does not notice three times that",
    ),
    Claim(
        workload="flood",
        metric="rate",
        limit=600_000,
        side="at least",
        origin="a Trio prototype measured 815,000 to 826,000 on a 2-core machine; a quarter less "
        "is allowed for positions, bounds and history",
    ),
    Claim(
        workload="flood",
        metric="rate",
        limit=1.0,
        side="at least",
        origin=_FASTEST,
        against="uwebsockets",
    ),
    Claim(
        workload="accept",
        metric="rate",
        limit=5_000,
        side="at least",
        origin="a prototype with its own accept loop measured 8,600 on a 2-core machine, bare "
        "Trio with a SocketStream 6,000; a real handshake's checks cost some 40 us",
    ),
    Claim(
        workload="accept",
        metric="rate",
        limit=1.0,
        side="at least",
        origin=_FASTEST,
        against="uwebsockets",
    ),
    *_storm("reconnect-storm"),
    *_storm("reconnect-storm-100"),
    Claim(workload="memory", metric="memory_kib", limit=6.0, side="at most", origin=_IDLE),
    Claim(
        workload="memory",
        metric="memory_kib",
        limit=11.0,
        side="at most",
        origin=_IDLE,
        server="repeater-centrifugo",
    ),
    Claim(
        workload="publish",
        metric="rate",
        limit=3_500,
        side="at least",
        origin="a bare Quart-Trio route under Hypercorn answers 1,720 requests a second on this "
        "kind of machine; the native path must bring twice that",
    ),
    _ingest("batch", 30_000),
    _ingest("stream", 50_000),
    *(claim for workload in hostile.WORKLOADS for claim in _hostile(workload)),
    *ENGINE_CLAIMS,
    *PROTOBUF_CLAIMS,
)


def judge(run: Run) -> None:
    """Judge each claim whose workload was run to its end; put the verdicts into the document."""
    run.verdicts = [claim.judge(run) for claim in CLAIMS if claim.workload in run.workloads]
