"""The tutorial's program, natively and under stock Hypercorn: CPU time for each delivery.

Both run the guestbook of docs/tutorial.md, and every event is a comment that was posted by its
form. They take turns in one run, with the floor (a bare loop of `send()`) in each turn.
Usage: python -m benchmarks.tutorial [--subscribers N] [--events N] [--rounds N]
"""

from __future__ import annotations

import http.client
import re
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
import psutil

from benchmarks.generator.wire import server_frame
from benchmarks.ports import free_port

_ROOT: Final = Path(__file__).parent.parent
_BLOCK: Final = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATIENCE: Final = 120.0  # seconds for one event to reach everybody, or a program to start
_UPGRADE: Final = (
    b"GET /ws?channel=comments HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# The same program, served by Hypercorn as it is published.
_STOCK: Final = """
from guestbook import *
from hypercorn.config import Config
from hypercorn.trio import serve
from repeater import create_app, open_node

async def main(path, port):
    with transaction(path) as db:
        db.executescript(TABLES)
    async with open_node(NodeOptions(insecure=True)) as node, trio.open_nursery() as nursery:
        wake, woken = trio.open_memory_channel[None](1)
        wake.send_nowait(None)
        nursery.start_soon(announce, node, path, woken)
        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        app = create_app(node, blueprints=[create_guestbook(path, wake)])
        await serve(app, config, shutdown_trigger=wait_stopped)
        nursery.cancel_scope.cancel()

trio.run(main, Path("guestbook.sqlite3"), int(sys.argv[1]))
"""

Publish = Callable[[int, int], None]
"""Has one event published: the server's port, and the event's number."""


class Crowd:
    """Plain subscribers of one server; counts the events that each has heard."""

    def __init__(self, port: int, size: int) -> None:
        self._poller = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(size):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(_UPGRADE)
            received = b""
            while b"\r\n\r\n" not in received:
                received += sock.recv(65_536)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poller.register(sock, select.EPOLLIN)

    def wait(self, mark: bytes) -> None:
        """Read until everybody has heard the event with this mark."""
        missing = dict.fromkeys(self._sockets, b"")
        deadline = time.monotonic() + _PATIENCE
        while missing:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{len(missing)} subscribers did not hear an event")
            for fd, _ in self._poller.poll(1.0):
                heard = missing.get(fd, b"") + self._sockets[fd].recv(65_536)
                if mark in heard:
                    missing.pop(fd, None)
                elif fd in missing:
                    missing[fd] = heard

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._poller.close()


@contextmanager
def running(*command: str, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A program on a free port, which is its last argument; ended at the end of the block."""
    port = free_port()
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, str(port)], cwd=folder, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException((folder / "output").read_text()) from None
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def measure(port: int, process: psutil.Process, size: int, events: int, publish: Publish) -> float:
    """Microseconds of the server's CPU time for each delivery."""
    crowd = Crowd(port, size)
    try:
        for number in range(events // 10 + 1):  # first, what is done once only
            publish(port, -number)
            crowd.wait(b"no %d;" % -number)
        before = process.cpu_times()
        for number in range(1, events + 1):
            publish(port, number)
            crowd.wait(b"no %d;" % number)
        after = process.cpu_times()
    finally:
        crowd.close()
    spent = after.user - before.user + after.system - before.system
    return float(spent) / (size * events) * 1e6


def post(port: int, number: int) -> None:
    """Write a comment by the guestbook's form."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/comments", f"text=no+{number}%3B", headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 302:
        raise click.ClickException(f"a comment was answered {answer.status}")


def floor(folder: Path, size: int, events: int) -> float:
    """What a bare loop of `send()` costs, for the same bytes."""
    with running(str(_ROOT / "benchmarks" / "peers" / "floor.py"), folder=folder) as (
        port,
        process,
    ):
        feed = socket.create_connection(("127.0.0.1", port))
        feed.sendall(b"FEED")
        time.sleep(0.1)

        def publish(_port: int, number: int) -> None:
            feed.sendall(server_frame(b'{"id": 1, "text": "no %d;"}' % number))

        try:
            return measure(port, process, size, events, publish)
        finally:
            feed.close()


@contextmanager
def program() -> Iterator[Path]:
    """A folder with the tutorial's files, and the program that serves them by Hypercorn."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, list[str]] = {}
        for file, text in _BLOCK.findall((_ROOT / "docs" / "tutorial.md").read_text()):
            parts.setdefault(file, []).append(text)
        for file, texts in parts.items():
            (folder / file).write_text("\n\n".join(texts))
        (folder / "stock.py").write_text(_STOCK)
        yield folder


@click.command()
@click.option("--subscribers", default=500, show_default=True)
@click.option("--events", default=40, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(subscribers: int, events: int, rounds: int) -> None:
    """Compare the tutorial's program with itself under stock Hypercorn."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found: dict[str, list[float]] = {"floor": [], "open_server": [], "stock Hypercorn": []}
    with program() as folder:
        for number in range(rounds):
            found["floor"].append(floor(folder, subscribers, events))
            for name, file in (("open_server", "guestbook.py"), ("stock Hypercorn", "stock.py")):
                with running(file, folder=folder) as (port, process):
                    cost = measure(port, process, subscribers, events, post)
                found[name].append(cost)
            line = ", ".join(f"{name} {costs[-1]:.1f}" for name, costs in found.items())
            click.echo(f"round {number + 1}: {line}")
    click.echo(f"CPU microseconds for each delivery, medians; {subscribers} subscribers:")
    for name, costs in found.items():
        click.echo(f"  {name:16} {statistics.median(costs):8.2f}")


if __name__ == "__main__":
    main()
