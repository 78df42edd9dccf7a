"""The cost of one event among many that arrive together: in a batch, in a stream, from a library.

It is the slope between two windows of the same warm server, one with few events and one with more,
so what the call around the events costs is not in it. Nobody is subscribed: what fan-out costs is
measured elsewhere (`costs`). The channel keeps history.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.gate.builds import Build
from benchmarks.gate.costs import (
    HISTORY,
    PATIENCE,
    SETTINGS,
    START,
    WINDOWS,
    minus,
    per,
    typical,
)
from benchmarks.gate.counters import Counts, Tool, wait_quiet
from benchmarks.generator.wire import WireError, event, request
from benchmarks.servers import ROOT, Child, running

FEW: Final = 16  # events in a window
MORE: Final = 256
_WARM: Final = 3  # windows of each size

_EVENT: Final = b'{"channel":"news","data":%s}' % event(0)


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """One way to publish many events together."""

    name: str
    """The name of one event's cost."""
    ask: Callable[[int], bytes]
    """Makes the bytes that publish so many events."""
    answer: bytes
    """Bytes that the answer contains once for each event, or once in all."""
    once: bool = False
    """Whether the answer contains them once in all."""
    command: Callable[[Build], Sequence[str]] = Build.command

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of the costs that `measure` returns."""
        return (self.name,)


def _batch(count: int) -> bytes:
    items = b",".join([b'{"publish":%s}' % _EVENT] * count)
    return request("/api/batch", b'{"commands":[%s]}' % items)


def _stream(count: int) -> bytes:
    lines = (_EVENT + b"\n") * count
    head = b"POST /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return b"%s%x\r\n%s\r\n0\r\n\r\n" % (head, len(lines), lines)


def _library(build: Build) -> Sequence[str]:
    return (build.python, "-m", "benchmarks.gate.library", "PORT")


BULKS: Final = (
    Bulk(name="event of a batch", ask=_batch, answer=b'"publish"'),
    Bulk(name="event of a stream", ask=_stream, answer=b'"accepted"', once=True),
    Bulk(
        name="publish by a library",
        ask=lambda count: b"%d\n" % count,
        answer=b".",
        command=_library,
    ),
)


def measure(make_tool: Callable[[Path], Tool], bulk: Bulk, build: Build) -> dict[str, Counts]:
    """Measure the cost of one event, by its name."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="repeater-gate-"))
        tool = make_tool(Path(directory))
        command = (*tool.prefix(), *bulk.command(build))
        # The library's program is the gate's own; the package that it imports is the revision's.
        # Python looks into the folder it runs in first, and a revision has a `benchmarks` too.
        paths = f"{ROOT}:{build.source}"
        settings = {**SETTINGS, **HISTORY, "PYTHONPATH": paths}
        child = stack.enter_context(running(command, settings, START, ROOT))
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", child.port), PATIENCE))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for count in (FEW, MORE) * _WARM:
            _publish(bulk, sock, child, count)
        tool.begin(child)
        tool.read()
        few, more = (
            typical([_window(tool, bulk, sock, child, count) for _ in range(WINDOWS)])
            for count in (FEW, MORE)
        )
    return {bulk.name: per(minus(more, few), MORE - FEW)}


def _window(tool: Tool, bulk: Bulk, sock: socket.socket, child: Child, count: int) -> Counts:
    _publish(bulk, sock, child, count)
    return tool.read()


def _publish(bulk: Bulk, sock: socket.socket, child: Child, count: int) -> None:
    """Publish so many events, and wait for their answers and until the server sleeps."""
    sock.sendall(bulk.ask(count))
    received, marks = b"", 1 if bulk.once else count
    while received.count(bulk.answer) < marks:
        received += _some(sock, received)
    wait_quiet(child)


def _some(sock: socket.socket, before: bytes) -> bytes:
    received = sock.recv(262_144)
    if not received:
        raise WireError(f"the server hung up after {before[-200:]!r}")
    return received
