"""What compression costs and saves: CPU of a delivery, bytes, memory, and where it begins to pay.

The server is measured without compression and with it, in turns in one run. Usage: just
bench-deflate [--rounds 3] [--seconds 5] [--only cpu]
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from random import Random
from statistics import median
from typing import Final

import click

from benchmarks.generator.documents import KINDS, document
from benchmarks.generator.wire import CHANNEL
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import REPEATER, VARIANTS
from benchmarks.servers import started
from benchmarks.workloads.fanout import fan_out
from benchmarks.workloads.memory import resident
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON, PLAIN, Codec
from repeater.protocol.centrifugo.deflated_codecs import Compression
from repeater.publication import Publication

DEFLATE: Final = next(one for one in VARIANTS if one.name == "repeater-deflate")
_CROWDS: Final = ((1, 100.0), (10, 100.0), (100, 50.0), (1_000, 20.0))  # events a second
_SIZE: Final = 1_024
_SIZES: Final = (512, 1_024, 4_096, 16_384, 65_000)
_SHORT: Final = (32, 64, 96, 128, 192, 256, 400)
_EVENTS: Final = 200
_CONNECTIONS: Final = 2_000


def cpu(rounds: int, seconds: float) -> Iterator[str]:
    """The server's CPU of one delivery, publishing included, for each size of a crowd."""
    yield f"CPU of a delivery of {_SIZE} bytes, us: medians of {rounds} rounds, ratios within one"
    for subscribers, rate in _CROWDS:
        turns = [
            [_delivery(peer, subscribers, rate, seconds) for peer in (REPEATER, DEFLATE)]
            for _ in range(rounds)
        ]
        plain, deflated = (median(values) for values in zip(*turns, strict=True))
        ratios = sorted(b / a for a, b in turns)
        yield (
            f"{subscribers:>7,} subscribers: {plain:8.2f} without, {deflated:8.2f} with: "
            f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def _delivery(peer: Peer, subscribers: int, rate: float, seconds: float) -> float:
    turn = fan_out(
        peer,
        subscribers=subscribers,
        rate=rate,
        seconds=seconds,
        size=_SIZE,
        content=document,
    )
    return turn.values["cpu_us"]


def size(_rounds: int, _seconds: float) -> Iterator[str]:
    """The bytes of frames, one event in each, and the time that compressing one takes."""
    yield f"bytes of frames with one event, and time to encode one: {_EVENTS} events each"
    for of_event in _SIZES:
        yield _row(f"{of_event:>7,} bytes", [document(n, n, of_event) for n in range(_EVENTS)])
    for kind in range(KINDS):
        numbers = range(kind, kind + KINDS * _EVENTS, KINDS)
        title = f"  4,096 of kind {kind}"
        yield _row(title, [document(n, n, 4_096) for n in numbers])
    yield "short messages, for `compression_min_size`: parts of such events"
    for of_event in _SHORT:
        data = [document(n, n, 512)[130 : 130 + of_event] for n in range(_EVENTS)]
        yield _row(f"{of_event:>7,} bytes", data)


def _row(title: str, data: list[bytes]) -> str:
    publications = [Publication(CHANNEL, one, offset=n) for n, one in enumerate(data, 1)]
    columns = []
    for name, plain in (("plain", PLAIN), ("SDK", CENTRIFUGE_JSON)):
        before, quick = _encoded(plain, publications, compressing=False)
        after, slow = _encoded(plain, publications, compressing=True)
        columns.append(f"{name} {after / before:.3f}, {quick:4.1f} -> {slow:5.1f} us")
    return f"{title}: {'; '.join(columns)}"


def _encoded(
    plain: Codec, publications: list[Publication], *, compressing: bool
) -> tuple[int, float]:
    """The bytes of all frames, and the microseconds for one, the least of a few tries.

    Each try has a codec of its own: a compressor remembers what it has compressed.
    """
    best, total = float("inf"), 0
    for _ in range(5):
        codec = Compression().codec(plain, 1) if compressing else plain
        codec.publications([Publication(CHANNEL, b"a" * 1_000)])
        start = time.perf_counter()
        total = sum(len(codec.publications([one])[0]) for one in publications)
        best = min(best, time.perf_counter() - start)
    return total, best * 1e6 / len(publications)


def turn(_rounds: int, _seconds: float) -> Iterator[str]:
    """How long one step of encoding keeps everybody waiting, at worst."""
    yield "longest steps: one message, compressed at once, ms"
    noise = b64encode(Random(1).randbytes(48_000))
    for title, one in (("JSON", document(1, 1, 65_000)), ("base64", noise)):
        codec = Compression().codec(PLAIN, 1)
        codec.publications([Publication(CHANNEL, b"a" * 1_000)])
        times = []
        for n in range(20):
            publication = Publication(CHANNEL, one + b"%d" % n)
            start = time.perf_counter()
            codec.publications([publication])
            times.append(time.perf_counter() - start)
        yield f"{title:>10}, 65,000 bytes: {median(times) * 1e3:.2f}"


def memory(rounds: int, _seconds: float) -> Iterator[str]:
    """What an idle subscriber adds to the server's memory."""
    yield f"memory of an idle subscriber, KiB: {_CONNECTIONS:,} of them"
    turns = [(_idle(REPEATER), _idle(DEFLATE)) for _ in range(rounds)]
    plain, deflated = (median(values) for values in zip(*turns, strict=True))
    yield f"{plain:.3f} without, {deflated:.3f} with"


def _idle(peer: Peer) -> float:
    with started(peer) as child:
        before, after = resident(child, peer.subscribe([CHANNEL]), _CONNECTIONS)
    return (after - before) / _CONNECTIONS / 1_024


FIGURES: Final[dict[str, Callable[[int, float], Iterator[str]]]] = {
    "cpu": cpu,
    "size": size,
    "turn": turn,
    "memory": memory,
}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Turns of each server.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of a turn of `cpu`.")
@click.option("--only", multiple=True, type=click.Choice(list(FIGURES)), help="These figures only.")
def main(rounds: int, seconds: float, only: tuple[str, ...]) -> None:
    """Measure what compression costs and saves, and print it."""
    for name, figure in FIGURES.items():
        if not only or name in only:
            for line in figure(rounds, seconds):
                click.echo(line)


if __name__ == "__main__":
    main()
