"""What the bus of Valkey costs a node: CPU of one message, and the repair of many channels.

The node is this process, without clients and fan-out: its broker, and somebody who counts events.
Another process publishes by a broker of its own. The floor is a Trio loop that reads the same
messages with the same parser and counts them: at such rates most of the CPU is that of waking up.
Usage: just bench-bus [--rate 5000] [--channels 10000]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import click
import hiredis
import trio

from benchmarks.peers import valkey
from repeater.brokers.receipts import Receipt, settled
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.brokers.valkey.keys import Keys
from repeater.json_text import json_text
from repeater.options import ChannelOptions
from repeater.publication import Event, Publication
from repeater.valkey import dial
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import packed
from repeater.valkey.url import Address, parse_url

OPTIONS: Final = ChannelOptions(history_size=100, history_ttl=600, history_meta_ttl=600)
_DATA: Final = json_text(b'{"text":"%b"}' % (b"x" * 124))  # 136 bytes in all
_FEW: Final = 100  # channels of the messages
_TICK: Final = 0.002  # seconds between two looks of the publisher at its rate
_SETTLING: Final = 0.3


class Follower:
    """A broker that runs, and in place of fan-out somebody who counts what comes."""

    def __init__(self, url: str) -> None:
        self.broker = ValkeyBroker(open_servers([parse_url(url)]))
        self.taken = 0
        self._wanted = 0
        self._reached = trio.Event()
        self.back = trio.Event()
        """Whether the engine is there, since this event was made."""
        self.broker._servers.add(self)

    def up(self, _partitions: Sequence[int]) -> None:
        """The engine is there."""
        self.back.set()

    def down(self, _partitions: Sequence[int]) -> None:
        """It is not there any more."""

    async def wait_room(self) -> None:
        """There is always room."""

    async def wait_taken(self, count: int) -> None:
        """Wait until so many events have come to fan-out."""
        if self.taken < count:
            self._wanted, self._reached = count, trio.Event()
            await self._reached.wait()

    def check_room(self) -> None:
        """There is always room."""

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        """Count an event."""
        self.taken += 1
        if self.taken == self._wanted:
            self._reached.set()

    async def publish(self, channels: int, count: int, rate: float = 0) -> None:
        """Publish so many events into channels by turns; at a rate, or as fast as it goes."""
        begun, last = trio.current_time(), None
        for number in range(count):
            if rate and not number % max(1, round(rate * _TICK)):
                await trio.sleep_until(begun + number / rate)
            event = Publication(f"c{number % channels}", _DATA)
            while True:
                try:
                    last = self.broker.submit(event, OPTIONS)
                    break
                except trio.WouldBlock:
                    await self.broker.wait_room()
        if isinstance(last, Receipt):
            await last.wait()
        await trio.sleep(_SETTLING)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Follower]:
    """One that runs for the time of a block."""
    async with trio.open_nursery() as nursery:
        one = Follower(url)
        nursery.start_soon(one.broker.run, one)
        await trio.sleep(_SETTLING)
        yield one
        nursery.cancel_scope.cancel()


async def receive(url: str, rate: float, seconds: float) -> str:
    """The CPU of one message, without what the node uses when nothing happens."""
    async with following(url) as node, trio.open_nursery() as nursery:
        for number in range(_FEW):
            await settled(node.broker.hold(f"c{number}"))
        begun = time.process_time()
        await trio.sleep(seconds / 2)
        idle = (time.process_time() - begun) * 2 / seconds
        nursery.start_soon(_load, url, rate, seconds)
        await node.wait_taken(1)
        bus = node.broker._servers._primary._bus  # type: ignore[attr-defined]
        return "a node: " + await _measure(lambda: (node.taken, bus.reads), seconds, idle)


async def floor(url: str, rate: float, seconds: float) -> str:
    """The same of a loop that does nothing but wait, read, parse and count."""
    taken, reads, begun = 0, 0, trio.Event()

    async def read(bus: trio.SocketStream) -> None:
        nonlocal taken, reads
        reader, file = hiredis.Reader(), bus.socket.fileno()
        while True:
            await trio.lowlevel.wait_readable(file)
            reader.feed(os.read(file, 65_536))
            reads += 1
            while reader.gets() is not False:
                taken += 1
            if taken > _FEW + 1:  # more than the answers to what it sent
                begun.set()

    bus = await trio.open_unix_socket(url.removeprefix("unix://"))
    async with bus, trio.open_nursery() as nursery:
        keys = Keys("repeater")
        names = [keys.names(f"c{number}").bus for number in range(_FEW)]
        await bus.send_all(packed("HELLO", 3) + packed("SUBSCRIBE", *names))
        nursery.start_soon(read, bus)
        nursery.start_soon(_load, url, rate, seconds)
        await begun.wait()
        figures = await _measure(lambda: (taken, reads), seconds)
        nursery.cancel_scope.cancel()
    return "a bare loop: " + figures


async def _load(url: str, rate: float, seconds: float) -> None:
    """Publish at a rate, from another process."""
    words = [sys.executable, "-m", "benchmarks.bus"]
    words += ["--url", url, "--rate", f"{rate:g}", "--seconds", f"{seconds + 2:g}"]
    await trio.run_process(words)


async def _measure(counts: Callable[[], tuple[int, int]], seconds: float, idle: float = 0) -> str:
    """What a message and a read cost this process for a time, by their counts so far.

    `idle` is the CPU of a second in which nothing comes.
    """
    await trio.sleep(_SETTLING)
    (taken, reads), used, since = counts(), time.process_time(), time.perf_counter()
    await trio.sleep(seconds)
    took = time.perf_counter() - since
    used = time.process_time() - used - idle * took
    taken, reads = counts()[0] - taken, counts()[1] - reads
    return (
        f"{used / max(1, taken) * 1e6:.2f} us a message at {taken / took:,.0f}/s, "
        f"{used / max(1, reads) * 1e6:.0f} us a read at {reads / took:,.0f}/s"
    )


async def repair(url: str, channels: int, missed: int) -> str:
    """How long an outage is felt in which each channel has missed some publications."""
    gate, held_back, really = trio.Event(), False, dial._open

    async def opened(address: Address, greeting: dial.Greeting) -> trio.abc.Stream:
        if held_back:
            await gate.wait()
        return await really(address, greeting)

    dial._open = opened
    try:
        async with following(url) as other:
            await other.publish(channels, channels)
            async with following(url) as node:
                for answer in [node.broker.hold(f"c{number}") for number in range(channels)]:
                    await settled(answer)
                held_back, node.taken = True, 0
                node.back = trio.Event()
                node.broker._servers._primary.leave("bus", "the benchmark")  # type: ignore[attr-defined]
                await trio.sleep(_SETTLING)
                await other.publish(channels, channels * missed)
                held_back, begun = False, time.process_time()
                gate.set()
                await node.back.wait()
                since = time.perf_counter()
                await node.wait_taken(channels * missed)
                took, used = time.perf_counter() - since, time.process_time() - begun
                await trio.sleep(_SETTLING)
                found = node.broker._bus.statistics()
    finally:
        dial._open = really
    assert (node.taken, found.ruptures) == (channels * missed, 0)
    return (
        f"{channels:,} channels that missed {missed} each: {took:.2f} s, {used:.2f} s of CPU, "
        f"{found.reads:,} reads"
    )


async def _publish(url: str, rate: float, seconds: float) -> None:
    async with following(url) as other:
        await other.publish(_FEW, int(rate * seconds), rate)


@click.command()
@click.option("--rate", default=5_000.0, show_default=True, help="Messages a second.")
@click.option("--channels", default=10_000, show_default=True, help="Channels to repair.")
@click.option("--seconds", default=6.0, show_default=True, help="How long to count messages.")
@click.option("--rounds", default=1, show_default=True, help="How often messages are counted.")
@click.option("--url", default="", hidden=True)
def main(rate: float, channels: int, seconds: float, rounds: int, url: str) -> None:
    """Measure the bus of a Valkey of this machine, and print a line for each figure."""
    if url:
        trio.run(_publish, url, rate, seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        engine = valkey.start(Path(folder))
        try:
            url = f"unix://{os.path.join(folder, valkey.SOCKET)}"
            for figure in (receive, floor) * rounds:
                click.echo(trio.run(figure, url, rate, seconds))
            for missed in (1, 5):
                click.echo(trio.run(repair, url, channels, missed))
        finally:
            engine.kill()
            engine.wait()


if __name__ == "__main__":
    main()
