"""From the call of `repeater.publish` to a subscriber: how long, and what holds it up."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, cast

import psycopg
import trio

from benchmarks.outbox.databases import at, database, pgbench
from benchmarks.peers.postgresql import PostgreSQL
from benchmarks.peers.valkey import SOCKET, start
from benchmarks.servers import Child, running
from repeater.subscriber import open_subscriber

ENGINES: Final = ("memory", "sqlite", "valkey")
_RATES: Final = (100, 1_000)
_CHANNELS: Final = 20
_SETTLES: Final = 1.0  # seconds for what is under way
_HELD: Final = 1.0  # seconds for which a transaction stays open
_HELD_RATE: Final = 200  # publications a second meanwhile
_CALLED: Final = "jsonb_build_object('at', extract(epoch FROM clock_timestamp()))"
_ORDER: Final = (
    f"\\set n random(0, {_CHANNELS - 1})\nBEGIN;\n"
    "INSERT INTO orders (channel, state) VALUES ('orders' || :n, 'new');\n"
    f"SELECT repeater.publish('orders' || :n, {_CALLED});\nCOMMIT;\n"
)
_SETTINGS: Final = {
    "REPEATER_DEV": "true",
    "REPEATER_COMMENTS": "false",
    "REPEATER_CHANNEL__HISTORY_SIZE": "100",
    "REPEATER_CHANNEL__HISTORY_TTL": "600",
}


@contextmanager
def serving(server: PostgreSQL, engine: str, *, outbox: bool = True) -> Iterator[Child]:
    """A server with the engine; without `outbox` it knows nothing of the database."""
    with tempfile.TemporaryDirectory(prefix="repeater-bench-") as folder, ExitStack() as stack:
        settings = dict(_SETTINGS)
        if outbox:
            settings["REPEATER_OUTBOX"] = server.url
        if engine == "sqlite":
            settings["REPEATER_DATA_DIR"] = f"{folder}/data"
        elif engine == "valkey":
            valkey = start(Path(folder))
            stack.callback(valkey.wait)
            stack.callback(valkey.kill)
            settings["REPEATER_ENGINE_URL"] = f"unix://{folder}/{SOCKET}"
        command = [sys.executable, "-m", "repeater", "serve", "--port", "PORT"]
        yield stack.enter_context(running(command, settings, patience=30))


@asynccontextmanager
async def hearing(child: Child, channels: list[str]) -> AsyncIterator[dict[str, list[float]]]:
    """The milliseconds from the call to the subscriber, by channel, as they come."""
    found: dict[str, list[float]] = defaultdict(list)

    async def hear() -> None:
        async with open_subscriber(
            f"http://127.0.0.1:{child.port}", channels, buffer=100_000
        ) as events:
            begun.set()
            async for event in events:
                data = cast("dict[str, float]", event.data)
                found[event.channel].append((time.time() - data["at"]) * 1_000)

    begun = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        await begun.wait()
        yield found
        nursery.cancel_scope.cancel()


def latency(version: int, seconds: float) -> Iterator[str]:
    """From the call to the subscriber, the commit included, beside the transaction's own time."""
    yield "from the call of publish, in the transaction of an order, to a subscriber (ms)"
    for engine in ENGINES:
        for rate in _RATES:
            with database(version) as server, serving(server, engine) as child:
                own, found = trio.run(_latency, server, child, rate, seconds)
            yield (
                f"{engine:<7} {rate:>5}/s: p50 {at(found, 0.5):6.2f}, p99 {at(found, 0.99):6.2f};"
                f" the transaction itself {at(own, 0.5):6.2f} and {at(own, 0.99):6.2f};"
                f" {len(found):,} of {len(own):,}"
            )


async def _latency(
    server: PostgreSQL, child: Child, rate: int, seconds: float
) -> tuple[list[float], list[float]]:
    channels = [f"orders{number}" for number in range(_CHANNELS)]
    async with hearing(child, channels) as found:
        load = partial(pgbench, server, _ORDER, clients=8, seconds=seconds, rate=rate)
        own = await trio.to_thread.run_sync(load)
        await trio.sleep(_SETTLES)
        return own, sorted(one for values in found.values() for one in values)


def open_transaction(version: int, rounds: int) -> Iterator[str]:
    """What others wait while a transaction that has published stays open."""
    yield f"while a transaction that has published stays open for {_HELD:.0f} s (ms)"
    with database(version) as server, serving(server, "memory") as child:
        without, held = trio.run(_held, server, child, rounds)
    for name in ("same", "other"):
        plain, late = sorted(without[name]), sorted(held[name])
        yield (
            f"{name:<5} channel: p50 {at(plain, 0.5):.2f}, p99 {at(plain, 0.99):.2f} without it;"
            f" p50 {at(late, 0.5):.2f}, p99 {at(late, 0.99):.2f} beside it:"
            f" {at(late, 0.5) - at(plain, 0.5):+.2f} and {at(late, 0.99) - at(plain, 0.99):+.2f}"
        )


async def _held(
    server: PostgreSQL, child: Child, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The milliseconds without and beside an open transaction, in turns, by channel."""
    parts: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    for _ in range(rounds):
        for is_held, part in zip((False, True), parts, strict=True):
            async with hearing(child, ["same", "other"]) as found:
                await trio.to_thread.run_sync(_publish_beside, server, is_held)
                await trio.sleep(_SETTLES)
                if is_held:  # The one of the open transaction is late itself.
                    found["same"].remove(max(found["same"]))
                for channel, values in found.items():
                    part[channel] += values
    return parts[0], parts[1]


def _publish_beside(server: PostgreSQL, is_held: bool) -> None:
    """Publish into both channels for a second, beside an open transaction or without one."""
    asked = f"SELECT repeater.publish(%s, {_CALLED})"
    with (
        psycopg.connect(server.url) as holder,
        psycopg.connect(server.url, autocommit=True) as session,
    ):
        session.execute(asked, ("warm",))  # The first call of a session reads the catalogue.
        if is_held:
            holder.execute(asked, ("same",))
        begun = time.monotonic()
        for number in range(int(_HELD * _HELD_RATE)):
            session.execute(asked, (("same", "other")[number % 2],))
            time.sleep(max(0.0, begun + (number + 1) / _HELD_RATE - time.monotonic()))
        holder.commit()


def idle(version: int, seconds: float) -> Iterator[str]:
    """What the database does for a server when nobody publishes, in parts of a core."""
    yield f"nobody publishes, for {seconds:.0f} s"
    with database(version) as server:
        for name, outbox in (("without a server", False), ("with a server", True)):
            with serving(server, "memory", outbox=outbox) as child:
                time.sleep(3)  # the busy time after the start
                begun, own = server.cpu(), child.cpu_ns()
                time.sleep(seconds)
                used, node = server.cpu() - begun, child.cpu_ns() - own
            yield (
                f"{name:<17}: {used / seconds:.2%} of a core for the database,"
                f" {node / 1e9 / seconds:.2%} for the server"
            )
