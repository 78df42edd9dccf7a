"""Reconnect storm: all clients are cut off at once, miss 20 events, and come back at once.

As many bare handshakes with a Trio server without WebSocket are measured beside it. Every client
gives its position and must get the missed events, once and in order, in the reply to its
`subscribe`. Events go on meanwhile, and each must reach every client once, by recovery or live. The
received bytes are kept, and judged when the clock has stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from benchmarks.generator.herd import Herd
from benchmarks.generator.protocol import Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import CHANNEL, event, handshake
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import CENTRIFUGO_PATH, centrifugo
from benchmarks.servers import Child, listen_overflows, started
from benchmarks.workloads.storm_judge import AFTER, BEFORE, DURING, LAST, MISSED, epoch_of, judge
from benchmarks.workloads.workload import Workload, distribution, percentile_ms

CLIENTS: Final = 5_000
AT_ONCE: Final = 200  # under way when the clients first connect, which is not measured
PATIENCE: Final = 30.0  # seconds until all clients must have the last event
METRICS: Final = {
    "seconds": Metric("until all are back with all missed events", "s", short="all back s"),
    "client_us": Metric("server CPU per client", "us", short="CPU us"),
    "recovered_p50_ms": Metric("until a client is back, median", "ms", short="back p50 ms"),
    "recovered_p99_ms": Metric(
        "until a client is back, 99th percentile", "ms", short="back p99 ms"
    ),
    "publish_max_ms": Metric("longest publish call meanwhile", "ms", short="call ms"),
    "lost": Metric("events lost", "events", short="lost"),
    "doubled": Metric("events doubled", "events", short="doubled"),
    "misplaced": Metric("events out of order", "events", short="out of order"),
    "overflows": Metric("connections that found the queue full", "connections", short="queue full"),
    "peak_mib": Metric("most resident memory of the server", "MiB", short="peak MiB"),
}
_BARE: Final = Greeting(request=handshake(CENTRIFUGO_PATH))


def storm(peer: Peer, *, clients: int, channels: Sequence[str]) -> Turn:
    """One turn, each client on one of the channels; a peer without recovery gets handshakes."""
    if "recovery" not in peer.capabilities:
        return _handshakes(peer, clients)
    names = [channels[number % len(channels)] for number in range(clients)]
    with (
        started(peer) as child,
        Herd(child.port) as herd,
        contextlib.closing(Publisher(child.port, peer.entry(channels))) as publisher,
    ):
        herd.watch(publisher)
        herd.come([greeting(name) for name in names], at_once=AT_ONCE)
        epochs = dict(zip(names, map(epoch_of, herd.received()), strict=True))
        publish(publisher, 0, BEFORE)
        herd.wait_for(event_mark(BEFORE - 1), PATIENCE)
        herd.vanish()
        publish(publisher, BEFORE, MISSED)
        returning = [greeting(name, epochs[name]) for name in names]
        return come_back(child, herd, publisher, returning)


def _handshakes(peer: Peer, clients: int) -> Turn:
    """The floor: the same return, with nothing but handshakes."""
    with started(peer) as child, Herd(child.port) as herd:
        herd.come([_BARE] * clients, at_once=AT_ONCE)
        herd.vanish()
        busy, cpu = Busy(), child.cpu_ns()
        busy.begin()
        seconds = herd.come([_BARE] * clients)
        busy.end()
        values = {"seconds": seconds, "client_us": (child.cpu_ns() - cpu) / 1e3 / clients}
        return Turn(values=values, generator=busy.share)


def come_back(
    child: Child, herd: Herd, publisher: Publisher, returning: Sequence[Greeting]
) -> Turn:
    """Connect all clients to this server, while events go on."""
    published = BEFORE + MISSED
    publisher.latencies_ns.clear()

    def publish_on(back: int) -> None:
        """Publish the storm's next event when its part of the clients is back."""
        nonlocal published
        number = published - BEFORE - MISSED
        due = len(returning) * number / DURING
        if number < DURING and not publisher.waiting and back >= due:
            publisher.publish(event(published))
            published += 1

    child.reset_peak()
    rss, overflows = child.rss(), listen_overflows()
    busy, cpu = Busy(), child.cpu_ns()
    busy.begin()
    seconds = herd.come(returning, beside=publish_on)
    busy.end()
    cpu = child.cpu_ns() - cpu
    publish(publisher, published, LAST + 1 - published)
    herd.wait_for(event_mark(LAST), PATIENCE)
    lost, doubled, misplaced = zip(*map(judge, herd.received()), strict=True)
    return Turn(
        values={
            "seconds": seconds,
            "client_us": cpu / 1e3 / len(returning),
            "recovered_p50_ms": percentile_ms(herd.ready_ns, 50),
            "recovered_p99_ms": percentile_ms(herd.ready_ns, 99),
            "publish_max_ms": max(publisher.latencies_ns) / 1e6,
            "lost": sum(lost),
            "doubled": sum(doubled),
            "misplaced": sum(misplaced),
            "overflows": listen_overflows() - overflows,
            "rss_mib": rss / 1_048_576,
            "peak_mib": child.peak_rss() / 1_048_576,
        },
        histograms={"recovered": distribution(herd.ready_ns)},
        generator=busy.share,
    )


def publish(publisher: Publisher, first: int, count: int) -> None:
    """Publish so many events, and wait for the last answer."""
    for number in range(first, first + count):
        publisher.publish(event(number))
    publisher.wait()


def greeting(channel: str, epoch: str = "") -> Greeting:
    """Connect and subscribe, in one message; with an epoch, recover from the cut."""
    since = f'"recover":true,"offset":{BEFORE},"epoch":"{epoch}",' if epoch else ""
    return centrifugo([channel], f'{since}"recoverable":true,')


def event_mark(number: int) -> bytes:
    """Return bytes that only the event with this number contains."""
    return event(number).partition(b",")[0][1:]


def _workload(name: str, where: str, channels: Sequence[str]) -> Workload:
    return Workload(
        name=name,
        title=f"Reconnect storm, {where}",
        description=f"{CLIENTS:,} clients on {where} are cut off, miss {MISSED} events, and come "
        f"back at once while {DURING} more are published, and {AFTER} when all are back. Bare Trio "
        "answers the handshakes and nothing else.",
        group="Connections",
        measure=lambda peer, plan: storm(peer, clients=plan.of(CLIENTS, 1_000), channels=channels),
        metrics=METRICS,
        only=("bare-trio", "repeater"),
    )


WORKLOADS: Final = (
    _workload("reconnect-storm", "one channel", [CHANNEL]),
    _workload("reconnect-storm-100", "100 channels", [f"news-{number}" for number in range(100)]),
)
