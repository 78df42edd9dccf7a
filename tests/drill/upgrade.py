"""A new server process in the old one's place, under load: who notices, and what is lost.

Three ways: `take-over` (the new one asks the old one for everything), `sockets` (the old one is
stopped and the new one is started while the listening socket stays open, as with systemd), and
`restart` (the same, and nobody listens meanwhile: a volume that one process at a time may have).

    python -m tests.drill.upgrade [take-over] [sockets] [restart] [--workers N] [--stored N]
"""

from __future__ import annotations

import json
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import click
import trio

from tests.drill.centrifugo import ClientWebSocket
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.links import Ended
from tests.drill.target import until
from tests.processes import SERVE, ServerProcess, serving

KEY = "the-key-of-the-back-end"
CHANNELS = tuple(f"news{number}" for number in range(4))
WAYS = ("take-over", "sockets", "restart")
KEPT = 20_000
"""Publications that a channel keeps: more than are published while a subscriber is away."""

_BEFORE, _AFTER = 1.0, 2.0  # seconds of load before the change, and behind it
_SETTLES = 20.0  # seconds until all subscribers have everything
_ENDS = 30.0  # seconds until the old server has ended
_EVERY = 0.02  # seconds between two new connections, or two calls of one back end
_AFTER_FAILURE = 0.05
_COMES_BACK = (0.1, 0.5)  # seconds before a subscriber connects again: sooner than SDKs do
_ANSWERS = 20.0  # seconds for an answer


@dataclass
class Report:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    """When publishes of kept connections were acknowledged."""
    newcomers: list[float] = field(default_factory=list)
    """Seconds from a new connection to the answer to its publish."""
    failures: list[float] = field(default_factory=list)
    """When a publish was not acknowledged, whatever the reason."""
    away: dict[str, float] = field(default_factory=dict)
    """Longest time of each subscriber without a subscription."""

    @property
    def pause(self) -> float:
        """The longest time in which nobody's publish was acknowledged, in seconds."""
        moments = sorted(self.accepted)
        return max(b - a for a, b in pairwise(moments))

    @property
    def lost_connections(self) -> Mapping[str, int]:
        """Connections that were refused, reset, or ended without an answer."""
        names = ("refused", "reset", "no answer")
        return {name: count for name, count in self.counts.items() if name.startswith(names)}

    def lines(self) -> Sequence[str]:
        """The report for a person."""
        failed = max(self.failures) - min(self.failures) if self.failures else 0.0
        return [
            f"publishing paused for {self.pause * 1e3:.0f} ms; publishes failed in a time of "
            f"{failed * 1e3:.0f} ms",
            f"longest answer to a new connection {max(self.newcomers) * 1e3:.0f} ms",
            f"longest time of a subscriber without a subscription {max(self.away.values()):.2f} s",
            ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items())),
        ]


class _NoAnswerError(Exception):
    """A connection ended before its answer."""


class _Calls:
    """Publishes on one connection, as a back end does; a new one where the old one has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None

    async def publish(self, channel: str, data: object, *, kept: bool = True) -> dict[str, Any]:
        """Publish once; the answer.

        Raises:
            OSError: nobody accepts the connection.
            _NoAnswerError: the connection ended instead.
        """
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        body = json.dumps({"channel": channel, "data": data}).encode()
        head = f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        head += f"Content-Length: {len(body)}\r\n" + ("" if kept else "Connection: close\r\n")
        try:
            await self._stream.send_all(head.encode() + b"\r\n" + body)
            with trio.fail_after(_ANSWERS):
                head_, answer = await self._answer(self._stream)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            await self.aclose()
            raise _NoAnswerError(repr(error.__cause__ or error)) from None
        if not kept or b"connection: close" in head_.lower():
            await self.aclose()
        found: dict[str, Any] = (
            json.loads(answer)
            if answer.startswith(b"{")
            else {"status": head_.partition(b"\r\n")[0].decode()}
        )
        return found

    async def _answer(self, stream: trio.SocketStream) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await _some(stream)
        head, _, body = received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < size:
            body += await _some(stream)
        return head, body

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
        self._stream = None


async def _some(stream: trio.SocketStream) -> bytes:
    chunk = await stream.receive_some(65_536)
    if not chunk:
        raise trio.BrokenResourceError("end of file")
    return bytes(chunk)


class _Load:
    """Back ends, newcomers and subscribers of one server. Lives inside `upgraded`."""

    def __init__(self, port: int, ledger: Ledger, report: Report) -> None:
        self._port = port
        self._ledger = ledger
        self._report = report

    async def publish(self, channel: str) -> None:
        """Publish into one channel, one event after the other, until cancelled."""
        calls = _Calls(self._port)
        try:
            while True:
                accepted = await self.publish_once(channel, calls)
                await trio.sleep(_EVERY if accepted else _AFTER_FAILURE)
        finally:
            with trio.CancelScope(shield=True):
                await calls.aclose()

    async def publish_once(self, channel: str, calls: _Calls) -> bool:
        """Publish the next event; whether it was acknowledged. Not cancelled half-way."""
        with trio.CancelScope(shield=True):
            number = self._ledger.attempt(channel)
            if await self._try(calls, channel, {"channel": channel, "n": number}):
                self._ledger.accept(channel, number)
                self._report.accepted.append(trio.current_time())
                return True
        return False

    async def _try(self, calls: _Calls, channel: str, data: object, *, kept: bool = True) -> bool:
        try:
            answer = await calls.publish(channel, data, kept=kept)
        except OSError as error:
            kind = "refused" if isinstance(error, ConnectionRefusedError) else f"refused: {error}"
        except _NoAnswerError as error:
            kind = f"no answer: {error}"
        else:
            if "result" in answer:
                return True
            kind = f"error {answer['error']['code']}" if "error" in answer else answer["status"]
        self._report.counts[kind] += 1
        self._report.failures.append(trio.current_time())
        return False

    async def connect(self, nursery: trio.Nursery) -> None:
        """Open a connection for each event, again and again, until cancelled."""
        while True:
            nursery.start_soon(self._newcomer)
            await trio.sleep(_EVERY)

    async def _newcomer(self) -> None:
        with trio.CancelScope(shield=True):
            calls, began = _Calls(self._port), trio.current_time()
            if await self._try(calls, "visitors", {}, kept=False):
                self._report.newcomers.append(trio.current_time() - began)


class _Subscriber(ClientWebSocket):
    """A subscriber that notes how its connections end, and how long it is away."""

    report: Report
    _left = 0.0

    async def run(self) -> None:
        while True:
            try:
                async with await self._open_stream("http/1.1") as stream:
                    await self.listen(stream)
            except Ended as ended:
                self.report.counts[_kind(str(ended))] += 1
            except OSError as error:
                self.report.counts[f"refused: a subscriber, {error.strerror}"] += 1
            self._left = self._left or trio.current_time()
            self.connected = False
            await trio.sleep(self._rng.uniform(*_COMES_BACK))

    def subscribed(self, channel: str, result: Mapping[str, Any]) -> None:
        super().subscribed(channel, result)
        away = trio.current_time() - (self._left or trio.current_time())
        self.report.away[self.name] = max(self.report.away.get(self.name, 0.0), away)
        self._left = 0.0


def _kind(end: str) -> str:
    if end.startswith("3001"):
        return "asked to come back"
    if "'code': 100" in end:
        return "subscribe answered 100"
    return f"no answer: a subscriber, {end}"


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
    upgrade: Upgrade, way: str, *, subscribers: int = 20, forgets: bool = False
) -> Report:
    """Put load on a server, change it, and check that every subscriber has everything.

    Args:
        upgrade: The server.
        way: How it is changed.
        subscribers: How many.
        forgets: Whether the server keeps its history in memory: then what is lost must be told.

    Raises:
        BrokenPromise: an event is lost without a word, comes twice or out of order.
    """
    report, ledger = Report(), Ledger(KEPT)
    async with upgrade.open(way), trio.open_nursery() as nursery:
        load = _Load(upgrade.port, ledger, report)

        async def open_stream(_protocol: str) -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", upgrade.port)

        followers = []
        for number in range(subscribers):
            channels = Random(number).sample(CHANNELS, 2)
            one = _Subscriber(number, channels, ledger, open_stream, end="native")
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
        calls = _Calls(upgrade.port)
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
            report = trio.run(partial(measure, upgrade, way, subscribers=subscribers))
        click.echo("\n  ".join((f"{way}:", *report.lines())))


if __name__ == "__main__":
    main()
