"""Transactions that publish: database, servers and programs are killed under load.

Programs write rows and publish them in one transaction, and may roll back. At the end each row has
its event once, no event is without its row, what a program committed first comes first, and a
subscriber that came back after each kill has had all events in the order of the history.
"""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

import httpx
import psycopg
import trio

from benchmarks.peers.postgresql import PostgreSQL
from repeater.postgres.schema import migrate
from repeater.subscriber import open_subscriber
from tests.deadlines import PROCESS_STARTS
from tests.drill.ledger import BrokenPromise
from tests.drill.writer import TABLE, Order, order_in, orders
from tests.postgres_servers import open_postgresql
from tests.processes import serving
from tests.valkeys import valkey

_WRITERS: Final = 4
_CHANNELS: Final = 3
_NAMES: Final = [f"orders{number}" for number in range(_CHANNELS)]
_SETTLES: Final = 60.0  # seconds until all has come
_STANDS: Final = 10.0  # seconds in which some row is published, if any is left
_LIFE: Final = 1_000_000  # numbers of one life of a program
_VARIABLES: Final = {
    "REPEATER_CHANNEL__HISTORY_SIZE": "1000000",
    "REPEATER_CHANNEL__HISTORY_TTL": "3600",
    "REPEATER_CHANNEL__FORCE_RECOVERY": "true",
    "REPEATER_RECOVERY_LIMIT": "1000000",
    "REPEATER_OUTBOX_LIMIT": "67108864",
    "REPEATER_HISTORY_LIMIT": "1000000",
}


@dataclass(frozen=True)
class TransactionDrill:
    """Database, servers and publishing programs are killed while transactions publish."""

    seed: int
    kills: int
    engine: Literal["sqlite", "valkey"] = "sqlite"
    """With SQLite there is one server, with Valkey there are two."""
    command: Sequence[str] = (sys.executable, "-m", "repeater", "serve")

    @property
    def name(self) -> str:
        return f"transaction_kills_{self.engine}"

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
        """
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            database = stack.enter_context(open_postgresql())
            migrate(database.url)
            with psycopg.connect(database.url) as connection:
                connection.execute(TABLE)
            places = [folder / f"{number}" for number in range(2 if self.engine == "valkey" else 1)]
            more = {"REPEATER_OUTBOX": database.url}
            if self.engine == "valkey":
                more["REPEATER_ENGINE_URL"] = stack.enter_context(valkey()).url
            counts = trio.run(self._run, database, places, more)
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    async def _run(
        self, database: PostgreSQL, places: Sequence[Path], more: dict[str, str]
    ) -> Counter[str]:
        rng = Random(self.seed)
        async with trio.open_nursery() as nursery:
            servers = [_Server(place, self.command, more, self.engine) for place in places]
            for server in servers:
                nursery.start_soon(server.run)
                await server.wait_up()
            writers = [_Writer(database.url, number) for number in range(_WRITERS)]
            for writer in writers:
                nursery.start_soon(writer.run)
            async with _reader(servers[0]) as seen:
                for kind in itertools.islice(_kinds(rng), self.kills):
                    await trio.sleep(rng.uniform(0.2, 0.8))
                    if kind == "database":
                        await _restart(database, rng)
                    elif kind == "server":
                        await rng.choice(servers).kill()
                    else:
                        rng.choice(writers).kill()
                await trio.sleep(1)
                for writer in writers:
                    writer.end()
                for server in servers:
                    await server.wait_up()
                counts = await _check(database, servers, seen)
            nursery.cancel_scope.cancel()
        return Counter(kills=self.kills) + counts


def _kinds(rng: Random) -> Iterator[str]:
    """What is killed, each about as often."""
    while True:
        yield from rng.sample(("database", "server", "program"), 3)


async def _restart(database: PostgreSQL, rng: Random) -> None:
    database.kill()
    await trio.sleep(rng.uniform(0, 0.5))
    await trio.to_thread.run_sync(database.start)


class _Server:
    """A server that is started again when it is killed. Listens on a Unix socket."""

    def __init__(
        self, folder: Path, command: Sequence[str], more: dict[str, str], engine: str
    ) -> None:
        folder.mkdir(mode=0o700)
        self.socket = str(folder / "socket")
        self._command = command
        self._variables = {**_VARIABLES, **more, "REPEATER_NODE_NAME": folder.name}
        if engine == "sqlite":
            self._variables["REPEATER_DATA_DIR"] = str(folder / "data")
        self._up = trio.Event()
        self._killed = trio.Event()

    async def run(self) -> None:
        while True:
            where = f"unix:{self.socket}"
            arguments = ("--dev", "--no-comments", "--listen", where)
            async with serving(
                *arguments, command=self._command, variables=self._variables
            ) as process:
                await process.line("unix:")
                self._up.set()
                await self._killed.wait()
                await process.end(signal.SIGKILL)
            self._up, self._killed = trio.Event(), trio.Event()

    async def wait_up(self) -> None:
        with trio.fail_after(PROCESS_STARTS):
            while not self._up.is_set():  # noqa: ASYNC110  # another event after each kill
                await trio.sleep(0.01)

    async def kill(self) -> None:
        await self.wait_up()
        self._killed.set()
        await trio.lowlevel.checkpoint()

    def client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=self.socket)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)


class _Writer:
    """A program that is started again when it is killed."""

    def __init__(self, url: str, number: int) -> None:
        self._url = url
        self._number = number
        self._process: trio.Process | None = None
        self._over = False

    async def run(self) -> None:
        for life in itertools.count():
            given = (self._number, life * _LIFE, _CHANNELS)
            command = [sys.executable, "-m", "tests.drill.writer", self._url, *map(str, given)]
            self._process = await trio.lowlevel.open_process(command)
            try:
                await self._process.wait()
            finally:
                self._process.kill()
                with trio.CancelScope(shield=True):
                    await self._process.wait()
            if self._over:
                return
            if self._process.returncode != -signal.SIGKILL:
                raise BrokenPromise(f"a program ended with {self._process.returncode}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        self._over = True
        self.kill()


@asynccontextmanager
async def _reader(server: _Server) -> AsyncIterator[dict[str, list[Order]]]:
    """What a subscriber of all channels has had so far, that comes back after each loss."""
    seen: dict[str, list[Order]] = {name: [] for name in _NAMES}

    def gap(channel: str) -> None:
        raise BrokenPromise(f"{channel}: the subscriber was told of a loss")

    async def read() -> None:
        async with open_subscriber(
            "http://localhost",
            _NAMES,
            unix_socket=server.socket,
            on_gap=gap,
            backoff=(0.05, 0.3),
            buffer=100_000,
        ) as events:
            begun.set()
            async for event in events:
                seen[event.channel].append(order_in(event.data))

    begun = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.fail_after(PROCESS_STARTS):
            await begun.wait()
        yield seen
        nursery.cancel_scope.cancel()


async def _check(
    database: PostgreSQL, servers: Sequence[_Server], seen: dict[str, list[Order]]
) -> Counter[str]:
    """Wait until all is published, and compare.

    Raises:
        BrokenPromise: rows, events and what the subscriber has had are not the same.
    """
    await _wait_empty(database)
    written: defaultdict[str, set[Order]] = defaultdict(set)
    for writer, number, channel in orders(database.url):
        written[channel].add((writer, number))
    for server in servers:
        async with server.client() as client:
            for channel in _NAMES:
                history = await _history(client, channel)
                _compare(channel, written[channel], history)
                await _wait_seen(channel, history, seen)
    return Counter(rows=sum(map(len, written.values())))


async def _wait_empty(database: PostgreSQL) -> None:
    """Wait until no row is left in the table; they go one after the other.

    Raises:
        BrokenPromise: none went for a long time, or some were refused.
    """
    left = fewer = _count(database, "outgoing")
    while left:
        with trio.move_on_after(_STANDS) as waiting:
            while fewer >= left:
                await trio.sleep(0.1)
                fewer = _count(database, "outgoing")
        if waiting.cancelled_caught:
            raise BrokenPromise(f"{left} rows are not published")
        left = fewer
    if refused := _count(database, "refused"):
        raise BrokenPromise(f"{refused} rows are refused")


def _count(database: PostgreSQL, table: str) -> int:
    with psycopg.connect(database.url) as connection:
        return int(connection.execute(f"SELECT count(*) FROM repeater.{table}").fetchall()[0][0])


async def _history(client: httpx.AsyncClient, channel: str) -> list[Order]:
    answer = await client.post("/api/history", json={"channel": channel, "limit": 1_000_000})
    publications = answer.json()["result"]["publications"]
    offsets = [one["offset"] for one in publications]
    if offsets != list(range(1, len(offsets) + 1)):
        raise BrokenPromise(f"{channel}: the offsets are not whole")
    return [order_in(one["data"]) for one in publications]


def _compare(channel: str, written: set[Order], history: Sequence[Order]) -> None:
    times = Counter(history)
    if doubled := [one for one, count in times.items() if count > 1]:
        raise BrokenPromise(f"{channel}: {len(doubled)} rows came twice: {doubled[:5]}")
    if lost := written - times.keys():
        raise BrokenPromise(f"{channel}: {len(lost)} rows have no event: {sorted(lost)[:5]}")
    if made_up := times.keys() - written:
        raise BrokenPromise(f"{channel}: {len(made_up)} events have no row: {sorted(made_up)[:5]}")
    last: dict[int, int] = {}
    for writer, number in history:
        if number < last.get(writer, -1):
            raise BrokenPromise(f"{channel}: {number} of {writer} came behind {last[writer]}")
        last[writer] = number


async def _wait_seen(channel: str, history: Sequence[Order], seen: dict[str, list[Order]]) -> None:
    with trio.move_on_after(_SETTLES):
        while len(seen[channel]) < len(history):  # noqa: ASYNC110
            await trio.sleep(0.05)
    if seen[channel] != history:
        raise BrokenPromise(
            f"{channel}: the subscriber has had {len(seen[channel])} events,"
            f" and not the {len(history)} of the history in their order"
        )
