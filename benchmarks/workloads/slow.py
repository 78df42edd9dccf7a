"""Slow readers: whether they delay the subscribers that read, and what happens to slow readers.

A slow reader hears the common channel, and a second channel that fills its socket beforehand; the
kernel's queue shows when the socket is full (`generator.slow`). From then on each measured event
has to wait in the server, be dropped, or cost the reader its connection. The healthy subscribers
are measured without and beside slow readers in alternation, half a second each. Medians of the
parts' 99th percentiles are compared: those of the whole would be the machine's two worst moments.

At last 2 MiB more than the kernel holds are published to each slow reader, and the server shows
its policy: it cuts slow readers, keeps their events (memory grows), or drops these events.
"""

from __future__ import annotations

import contextlib
import statistics
from array import array
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.slow import SlowReaders, offer
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import Child, started
from benchmarks.workloads.workload import Plan, Workload, distribution, percentile_ms

_SUBSCRIBERS: Final = 1_000
_RATE: Final = 50
_EVENTS: Final = 25  # in each part: half a second
_FILLING: Final = "filling"
_OFFERED: Final = 2 * 1_048_576  # bytes published to each slow reader in the end
_REST: Final = 0.5  # seconds in which the server then applies its policy

METRICS: Final = {
    "slow_ratio": Metric(
        "99th percentile beside slow readers, against without", "x", short="beside x"
    ),
    "without_p99_ms": Metric(
        "delivery, 99th percentile without slow readers", "ms", short="alone p99 ms"
    ),
    "beside_p99_ms": Metric("the same beside slow readers", "ms", short="beside p99 ms"),
    "cut": Metric("slow readers cut in the end", "%", "neither", "cut %"),
    "grown_mib": Metric("growth of resident memory in the end", "MiB", short="grown MiB"),
}


class _Parts(msgspec.Struct):
    """The healthy subscribers' latencies in nanoseconds, part by part."""

    without: list[Sequence[int]] = msgspec.field(default_factory=list)
    beside: list[Sequence[int]] = msgspec.field(default_factory=list)
    """Empty where the slow readers had been cut before the end of the part."""

    def values(self) -> dict[str, float]:
        """Return percentiles, and the ratio of their medians if slow readers stayed connected."""
        values = {"without_p99_ms": percentile_ms(_joined(self.without), 99)}
        if beside := [part for part in self.beside if part]:
            values |= {
                "slow_ratio": _usual_p99(beside) / _usual_p99(self.without),
                "beside_p99_ms": percentile_ms(_joined(beside), 99),
            }
        return values


def _usual_p99(parts: Sequence[Sequence[int]]) -> float:
    return statistics.median(percentile_ms(part, 99) for part in parts)


def _joined(parts: Sequence[Sequence[int]]) -> list[int]:
    return [value for part in parts for value in part]


def slow_readers(peer: Peer, plan: Plan, count: int) -> Turn:
    """One turn: of 1,000 subscribers, `count` do not read in every other part."""
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(_SUBSCRIBERS - count, peer.subscribe([CHANNEL]))
        with (
            contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]))) as publisher,
            contextlib.closing(Publisher(child.port, peer.entry([_FILLING]))) as filler,
        ):
            deliveries = Deliveries(crowd)
            deliveries.watch(publisher)
            deliveries.run(publisher, _EVENTS, _RATE)
            deliveries.forget()
            resident = child.rss()
            parts, policy = _Parts([_part(deliveries, publisher)]), dict[str, float]()
            for left in reversed(range(plan.of(4, 2))):
                with SlowReaders(child.port, count, peer.subscribe([CHANNEL, _FILLING])) as slow:
                    slow.fill(filler, crowd)
                    part = _part(deliveries, publisher)
                    parts.beside.append(part if slow.connected() == count else ())
                    if not left:
                        policy = _policy(child, slow, filler, crowd, resident)
                crowd.idle(0.1)  # the server notices that slow readers have left
                parts.without.append(_part(deliveries, publisher))
        histograms = {"without": distribution(_joined(parts.without))}
        if beside := _joined(parts.beside):
            histograms["beside"] = distribution(beside)
        return Turn(
            values=parts.values() | policy,
            histograms=histograms,
            generator=deliveries.busy.share,
        )


def _part(deliveries: Deliveries, publisher: Publisher) -> Sequence[int]:
    del deliveries.latencies_ns[:]
    deliveries.run(publisher, _EVENTS, _RATE)
    return array("q", deliveries.latencies_ns)


def _policy(
    child: Child, slow: SlowReaders, filler: Publisher, crowd: Crowd, resident: int
) -> dict[str, float]:
    """Return what the server does with more bytes than it can send."""
    offer(filler, _OFFERED)
    crowd.idle(_REST)
    return {
        "cut": 100 * (1 - slow.connected() / slow.count),
        "grown_mib": (child.rss() - resident) / 1_048_576,
    }


def _measure(count: int) -> Callable[[Peer, Plan], Turn]:
    return lambda peer, plan: slow_readers(peer, plan, count)


def _workload(count: int, words: str) -> Workload:
    return Workload(
        name=f"slow-{count}",
        title=f"{words} of {_SUBSCRIBERS:,} subscribers not reading",
        description=f"{_RATE} events a second to {_SUBSCRIBERS:,} subscribers of one channel. "
        f"Slow readers ({words.lower()}) do not read in every other half second, and their "
        "sockets are full. In the end 2 MiB more are published to each slow reader.",
        group="Slow readers",
        measure=_measure(count),
        metrics=METRICS,
        needs=frozenset({"channels"}),
        broad=True,
        subscribers=_SUBSCRIBERS,
        rounds=3 if count == 1 else 2,  # there is a claim about the first
    )


WORKLOADS: Final = (
    _workload(1, "One"),
    _workload(_SUBSCRIBERS // 100, "1 %"),
    _workload(_SUBSCRIBERS // 10, "10 %"),
)
