"""Hostile: what a flood of one kind does to honest subscribers, health checks and memory.

In each turn a fresh server serves 1,000 honest subscribers, first alone and then beside attackers,
for the same time. So a turn compares a flood with its own baseline, in the same minute. Attackers
are a process of their own on the generator's core, with a lower priority, from addresses other
than the honest ones. They send as fast as the server takes it, and come back at once when they are
cut. If attackers and generator together need 90 % of their core, the turn is repeated with half as
many attackers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.generator.attack import Order, Tally
from benchmarks.generator.attackers import Attackers
from benchmarks.generator.floods import HISTORY_CHANNEL
from benchmarks.generator.honest import PATIENCE, HealthChecks, HonestDeliveries, SteadyPublisher
from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.secure import secured
from benchmarks.generator.wire import CHANNEL, event
from benchmarks.model import BOTTLENECK, Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import Child, started
from benchmarks.workloads.hostile_kinds import KINDS, Kind
from benchmarks.workloads.workload import Plan, Workload, distribution, percentile_ms

SUBSCRIBERS: Final = 1_000
ATTACKERS: Final = 8
_RATE: Final = 20  # events a second, and as many health checks: one every 50 ms
SECONDS: Final = 20
_REST: Final = 10  # seconds after the last attacker
_WARM_UP: Final = 1  # second
_HISTORY: Final = 100  # publications of 4 KiB in the channel of the history flood
_HISTORY_SIZE: Final = 4_096
_MIB: Final = 1_048_576

METRICS: Final = {
    "p99_ratio": Metric(
        "99th percentile of deliveries under the flood, against without", "x", short="p99 x"
    ),
    "without_p99_ms": Metric(
        "delivery, 99th percentile without the flood", "ms", short="alone p99 ms"
    ),
    "flood_p99_ms": Metric("the same under the flood", "ms", short="flood p99 ms"),
    "health_p99_ms": Metric(
        "health check under the flood, 99th percentile", "ms", short="health p99 ms"
    ),
    "grown_mib": Metric(
        "peak of resident memory over that without the flood", "MiB", short="peak + MiB"
    ),
    "kept_mib": Metric(
        "resident memory after the flood over that before", "MiB", short="kept + MiB"
    ),
    "lost": Metric("honest deliveries lost", "deliveries", short="lost"),
    "ended": Metric("honest connections ended", "connections", short="ended"),
    "sent_kib": Metric("what the attackers got in", "KiB/s", "neither", "in KiB/s"),
    "cut": Metric("attackers cut, each second", "/s", "neither", "cut /s"),
    "attackers": Metric("attackers", "", "neither", "attackers"),
}


class _Part(msgspec.Struct):
    """What was measured in one part of a turn, without a flood or under it."""

    latencies_ns: Sequence[int]
    checks_ns: Sequence[int]
    peak: int
    """Most resident bytes of the server."""


def hostile(
    peer: Peer,
    kind: Kind,
    *,
    seconds: float,
    rest: float,
    subscribers: int = SUBSCRIBERS,
    attackers: int = ATTACKERS,
) -> Turn:
    """One turn; again with fewer attackers as long as the generator's core is the limit."""
    while True:
        turn = _turn(peer, kind, seconds, rest, subscribers, attackers)
        if not turn.bottleneck or attackers == 1:
            return turn
        attackers //= 2


def _turn(
    peer: Peer, kind: Kind, seconds: float, rest: float, subscribers: int, attackers: int
) -> Turn:
    wrap = secured if peer.secure else None
    entry = peer.entry([CHANNEL])
    with (
        started(peer) as child,
        Attackers() as crew,
        Crowd(child.port, wrap) as crowd,
        contextlib.ExitStack() as stack,
    ):
        if kind.name == "history":
            _fill_history(child, peer)
        crowd.open(subscribers, peer.subscribe([CHANNEL]))
        # Behind the crowd: a server closes a connection that asks nothing for some seconds.
        publisher = SteadyPublisher(child.port, entry, wrap)
        stack.enter_context(contextlib.closing(publisher))
        honest = HonestDeliveries(crowd)
        honest.watch(publisher)
        checks = HealthChecks(honest, child.port, peer.health, secure=peer.secure)
        _part(child, honest, publisher, checks, _WARM_UP)
        without = _part(child, honest, publisher, checks, seconds)
        before = child.rss()
        used, start = time.thread_time(), time.monotonic()
        crew.begin(Order(port=child.port, flood=kind.make(peer), attackers=attackers))
        beside = _part(child, honest, publisher, checks, seconds)
        tally = crew.end()
        used, took = time.thread_time() - used, time.monotonic() - start
        honest.listen(rest)
        peak = max(beside.peak, child.peak_rss())  # what came in may be carried out only now
        return Turn(
            values={
                **_compared(without, beside),
                "grown_mib": (peak - without.peak) / _MIB,
                "kept_mib": (child.rss() - before) / _MIB,
                "lost": honest.lost,
                "ended": honest.ended,
                **_achieved(tally, took, attackers),
            },
            histograms={
                "without": distribution(without.latencies_ns),
                "flood": distribution(beside.latencies_ns),
            },
            generator=min(1.0, (used + tally.cpu_s) / took),
        )


def _part(
    child: Child,
    honest: HonestDeliveries,
    publisher: Publisher,
    checks: HealthChecks,
    seconds: float,
) -> _Part:
    """Publish and check for so many seconds, and wait for what is under way."""
    honest.forget()
    checks.latencies_ns.clear()
    child.reset_peak()
    for tick in honest.ticks(round(seconds * 2 * _RATE), 2 * _RATE):
        if tick % 2:
            checks.begin()
        else:
            honest.publish(publisher)
    honest.listen(PATIENCE, patient=True)
    if checks.outstanding:
        honest.listen(1)
    checks.finish()
    return _Part(tuple(honest.latencies_ns), tuple(checks.latencies_ns), child.peak_rss())


def _compared(without: _Part, beside: _Part) -> dict[str, float]:
    alone, flood = (percentile_ms(part.latencies_ns, 99) for part in (without, beside))
    return {
        "p99_ratio": flood / alone,
        "without_p99_ms": alone,
        "flood_p99_ms": flood,
        "health_p99_ms": percentile_ms(beside.checks_ns, 99),
    }


def _achieved(tally: Tally, took: float, attackers: int) -> dict[str, float]:
    return {
        "sent_kib": tally.sent / took / 1_024,
        "cut": tally.cut / took,
        "attackers": attackers,
    }


def _fill_history(child: Child, peer: Peer) -> None:
    """Publish as much as the channel of the history flood keeps."""
    with contextlib.closing(Publisher(child.port, peer.entry([HISTORY_CHANNEL]))) as publisher:
        for number in range(_HISTORY):
            publisher.publish(event(number, size=_HISTORY_SIZE))
        publisher.wait()


def _measure(kind: Kind) -> Callable[[Peer, Plan], Turn]:
    def measure(peer: Peer, plan: Plan) -> Turn:
        seconds = plan.seconds or plan.of(SECONDS, 3)
        return hostile(peer, kind, seconds=seconds, rest=min(_REST, seconds))

    return measure


WORKLOADS: Final = tuple(
    Workload(
        name=f"hostile-{kind.name}",
        title=f"Under a flood: {kind.title}",
        description=f"{kind.description} {SUBSCRIBERS:,} honest subscribers of one channel get "
        f"{_RATE} events a second, and a health check is made on a new connection every "
        f"{1_000 // _RATE} ms, {SECONDS} s without attackers and {SECONDS} s beside "
        f"{ATTACKERS} attackers. They come back at once when they are cut. If their core was used "
        f"to {BOTTLENECK:.0%}, the turn is repeated with half as many. What memory the server "
        f"keeps is read {_REST} s after the last attacker.".replace("%", " %"),
        group="Under attack",
        measure=_measure(kind),
        metrics=METRICS,
        only=kind.peers,
        subscribers=SUBSCRIBERS,
        apart=True,
    )
    for kind in KINDS
)
