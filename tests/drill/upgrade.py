"""A new server process in the old one's place, under load: who notices, and what is lost.

Three ways: `take-over` (the new one asks the old one for everything), `sockets` (the old one is
stopped and the new one is started while the listening socket stays open, as with systemd), and
`restart` (the same, and nobody listens meanwhile: a volume that one process at a time may have).

    python -m tests.drill.upgrade [take-over] [sockets] [restart] [--workers N] [--stored N]
"""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import click
import trio

from tests.drill.clients import KEY, Calls, Follower, Load, Report, store
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.target import until
from tests.processes import SERVE, ServerProcess, serving

CHANNELS = tuple(f"news{number}" for number in range(4))
WAYS = ("take-over", "sockets", "restart")
KEPT = 20_000
"""Publications that a channel keeps: more than are published while a subscriber is away."""

_BEFORE, _AFTER = 1.0, 2.0  # seconds of load before the change, and behind it
_SETTLES = 20.0  # seconds until all subscribers have everything
_ENDS = 30.0  # seconds until the old server has ended


class Upgrade:
    """A server, and how another one comes in its place. Made by `open_upgrade`.

    Args:
        folder: For the data directory and the configuration.
        arguments: More of the command line, for both servers.
        settings: More lines of the configuration.
    """

    def __init__(self, folder: Path, arguments: Sequence[str] = (), settings: str = "") -> None:
        self.data = folder / "data"
        self._file = folder / "repeater.toml"
        self._file.write_text(
            f'api_key = "{KEY}"\ndata_dir = "{self.data}"\n{settings}\n'
            f"allow_anonymous = true\n[channel]\nforce_recovery = true\n"
            f"allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n"
            f'history_size = {KEPT}\nhistory_ttl = "1h"\n'
        )
        self._arguments = arguments
        self.variables: Mapping[str, str] = {}
        """More of the environment."""
        self._listener: socket.socket | None = None
        self._nursery: trio.Nursery
        self.port = 0
        self.old: ServerProcess

    @asynccontextmanager
    async def open(self, way: str) -> AsyncIterator[None]:
        """Start the old server; all that is started ends with the block."""
        with ExitStack() as stack:
            if way == "sockets":
                self._listener = socket.create_server(("127.0.0.1", 0), backlog=4_096)
                stack.callback(self._listener.close)
            async with trio.open_nursery() as self._nursery:
                self.old = await self.start()
                self.port = await self.old.port()
                yield
                self._nursery.cancel_scope.cancel()

    async def start(self, *more: str) -> ServerProcess:
        """Start a server."""
        where = ("--listen", f"127.0.0.1:{self.port}") if self._listener is None else ()
        command: Sequence[str] = SERVE
        if self._listener is not None:
            # As systemd passes it on, which is file descriptor 3.
            number = self._listener.fileno()
            script = f'exec 3<&{number}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
            command = ("bash", "-c", script, "bash", *SERVE)
            where = ("--listen", f"unix:{self.data.parent}/other.sock")
        arguments = ("--config", str(self._file), *where, *self._arguments, *more)
        pass_fds = () if self._listener is None else (self._listener.fileno(),)

        async def run(task_status: trio.TaskStatus[ServerProcess]) -> None:
            running = serving(
                *arguments, command=command, variables=self.variables, pass_fds=pass_fds
            )
            async with running as server:
                task_status.started(server)
                await server.process.wait()

        return await self._nursery.start(run)  # type: ignore[no-any-return]

    async def change(self, way: str) -> ServerProcess:
        """Have another server in the place of the old one; returns when it is up."""
        if way == "take-over":
            new = await self.start("--take-over")
            await new.line("is up on")
            with trio.fail_after(_ENDS):
                await self.old.process.wait()
        else:
            await self.old.end(signal.SIGTERM)
            new = await self.start()
            await new.line("is up on")
        for server in (self.old, new):
            if b"Traceback" in server.log:
                raise BrokenPromise(server.log.decode(errors="replace"))
        return new


async def measure(
    upgrade: Upgrade,
    way: str,
    *,
    subscribers: int = 20,
    stored: int = 0,
    forgets: bool = False,
) -> Report:
    """Put load on a server, change it, and check that every subscriber has everything.

    Args:
        upgrade: The server.
        way: How it is changed.
        subscribers: How many.
        stored: Publications that are in the history before.
        forgets: Whether the server keeps its history in memory: then what is lost must be told.

    Raises:
        BrokenPromise: an event is lost without a word, comes twice or out of order.
    """
    report, ledger = Report(), Ledger(KEPT)
    async with upgrade.open(way), trio.open_nursery() as nursery:
        load = Load(upgrade.port, ledger, report)
        await store(upgrade.port, stored)

        async def open_stream(_protocol: str) -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", upgrade.port)

        followers = []
        for number in range(subscribers):
            channels = Random(number).sample(CHANNELS, 2)
            one = Follower(number, channels, ledger, open_stream, end="native")
            one.report = report
            followers.append(one)
            nursery.start_soon(one.run)
        await _until(lambda: all(one.connected for one in followers), "connected")
        with trio.CancelScope() as publishing:
            async with trio.open_nursery() as publishers:
                for channel in CHANNELS:
                    publishers.start_soon(load.publish, channel)
                publishers.start_soon(load.connect, publishers)
                await trio.sleep(_BEFORE)
                ledger.forgetting = forgets
                await upgrade.change(way)
                await trio.sleep(_AFTER)
                publishing.cancel()
        await _until(lambda: all(one.connected for one in followers), "connected again")
        ledger.forgetting = False
        calls = Calls(upgrade.port)
        for channel in CHANNELS:
            if not await load.publish_once(channel, calls):
                raise BrokenPromise(f"the new server publishes nothing: {report.counts}")
        await calls.aclose()
        with trio.move_on_after(_SETTLES):
            await until(lambda: not ledger.behind())
        ledger.check()
        nursery.cancel_scope.cancel()
    report.counts.update(ledger.counts)
    return report


async def _until(condition: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(_SETTLES) as scope:
        await until(condition)
    if scope.cancelled_caught:
        raise BrokenPromise(f"not all subscribers are {what} within {_SETTLES:g} s")


@click.command()
@click.argument("ways", nargs=-1, type=click.Choice(WAYS))
@click.option("--workers", default=1, show_default=True, help="Processes of each server.")
@click.option("--stored", default=0, show_default=True, help="Publications stored before.")
@click.option("--subscribers", default=200, show_default=True)
def main(ways: Sequence[str], workers: int, stored: int, subscribers: int) -> None:
    """Change a server under load, and say what its clients saw."""
    for way in ways or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            upgrade = Upgrade(Path(folder), ("--workers", str(workers)))
            report = trio.run(
                partial(measure, upgrade, way, subscribers=subscribers, stored=stored)
            )
        click.echo("\n  ".join((f"{way}:", *report.lines())))


if __name__ == "__main__":
    main()
