"""Durable history: what it costs to answer only after a commit, and what a restart takes.

Every event has 136 bytes, and each of 100 channels keeps 100 of them. Memory and SQLite take turns,
and so does a program that only commits, in a folder of the same file system.
"""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.generator.wire import WireError, request
from benchmarks.model import METRICS, Metric, Turn
from benchmarks.peers.engines import HISTORY
from benchmarks.peers.peer import Peer
from benchmarks.servers import running, started
from benchmarks.workloads.calls import CHANNELS, closed_loops
from benchmarks.workloads.publishing import EVENT, RATE, accepted, ask, lines, stream
from benchmarks.workloads.workload import Workload

_CONNECTIONS: Final = 64
_PATIENCE: Final = 60.0  # seconds for one answer
_PART: Final = 50_000  # publications in one request while the file is filled
_MOST: Final = {"REPEATER_HISTORY_BYTES": str(2**30)}  # a million are counted as some 400 MB
_RESTARTS: Final = 3
_SETTLE: Final = 0.5  # seconds


def alone(peer: Peer, *, seconds: float) -> Turn:
    """One turn with one connection; of the floor, as many commits as it makes.

    Of the floor also how much longer a commit by request takes than a request and a commit: while
    the disk works, server and client sleep, and neither wakes as fast as after some microseconds.
    """
    if not peer.floor:
        return closed_loops(peer, connections=1, seconds=seconds)
    with (
        started(peer) as child,
        socket.create_connection(("127.0.0.1", child.port), _PATIENCE) as sock,
    ):
        sock.sendall(b"%g\n" % seconds)
        found = msgspec.json.decode(sock.recv(65_536), type=dict[str, float])
        commits, echoes = (_median_ms(sock, line, seconds / 4) for line in (b"commit\n", b"echo\n"))
    return Turn(
        values={
            "publish_p50_ms": found["commit_ms"],
            "fdatasync_ms": found["fdatasync_ms"],
            "asleep_ms": commits - echoes - found["commit_ms"],
        }
    )


def _median_ms(sock: socket.socket, line: bytes, seconds: float) -> float:
    """Send a line again and again, each after the answer to the last; the median of the answers."""
    took = list[float]()
    end = time.monotonic() + seconds
    while not took or time.monotonic() < end:
        start = time.monotonic()
        sock.sendall(line)
        if sock.recv(64) != line:
            raise WireError("the floor answers something else")
        took.append(time.monotonic() - start)
    return statistics.median(took) * 1e3


def restart(peer: Peer, *, publications: int) -> Turn:
    """One turn: fill a file, then start with an empty one and with this one, in turns."""
    with tempfile.TemporaryDirectory(prefix="repeater-benchmarks-") as folder:
        empty, full = (_place(Path(folder), name) for name in ("empty", "full"))
        settings = {**peer.settings(), **_MOST}
        for place, count in ((empty, 0), (full, publications)):
            with running(peer.command(place), settings) as child:
                _fill(child.port, count)
        starts = [
            [_start(peer.command(place), settings, count) for place, count in both]
            for both in [((empty, 0), (full, publications))] * _RESTARTS
        ]
    empty_s, empty_mb, full_s, full_mb = (
        statistics.median(values) for values in zip(*(a + b for a, b in starts), strict=True)
    )
    return Turn(
        values={
            "added_s": full_s - empty_s,
            "added_mb": full_mb - empty_mb,
            "empty_s": empty_s,
            "empty_mb": empty_mb,
        }
    )


def _place(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


def _start(
    command: Sequence[str], settings: dict[str, str], publications: int
) -> tuple[float, float]:
    """Return the seconds until a server accepts connections, and its resident megabytes."""
    start = time.monotonic()
    with running(command, settings) as child:
        took = time.monotonic() - start
        time.sleep(_SETTLE)
        resident = child.rss() / 1e6
        _check(child.port, publications)
    return took, resident


def _channels(publications: int) -> list[str]:
    return [f"news-{number}" for number in range(max(1, publications // HISTORY))]


def _fill(port: int, publications: int) -> None:
    """Publish so many events, a whole history into each channel."""
    channels = _channels(publications)
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as sock:
        for first in range(0, publications, _PART):
            at = first % len(channels)
            count = min(_PART, publications - first)
            answer = ask(sock, lines(channels[at:] + channels[:at], count))
            if answer != accepted(count):
                raise WireError(f"unexpected answer: {answer[:200]!r}")


def _check(port: int, publications: int) -> None:
    """Check that the first and the last channel have their whole history."""
    for channel in {*_channels(publications)[:: max(1, publications // HISTORY - 1)]}:
        body = json.dumps({"channel": channel, "limit": -1}).encode()
        with socket.create_connection(("127.0.0.1", port), _PATIENCE) as sock:
            answer = json.loads(ask(sock, request("/api/history", body)))
        found = answer["result"]
        expected = HISTORY if publications else 0
        if (found["offset"], len(found["publications"])) != (expected, expected):
            raise WireError(f"{channel} has {len(found['publications'])} up to {found['offset']}")


_RESTART_METRICS: Final = {
    "added_s": Metric("start, over one with an empty file", "s", short="added s"),
    "added_mb": Metric("resident memory, over that with an empty file", "MB", short="added MB"),
    "empty_s": Metric("start with an empty file", "s", "neither", short="empty s"),
    "empty_mb": Metric("resident memory with an empty file", "MB", "neither", short="empty MB"),
}
_BOTH: Final = ("repeater-memory", "repeater-durable")
_GROUP: Final = "Durable history"
_CALLS: Final = Metric("calls a second", "/s", "higher", "per second")

WORKLOADS: Final = (
    Workload(
        name="durable-calls",
        title=f"Publish calls from {_CONNECTIONS} connections",
        description=f"{_CONNECTIONS} connections publish into {len(CHANNELS)} channels, each after "
        "the answer to its last call.",
        group=_GROUP,
        measure=lambda peer, plan: closed_loops(
            peer, connections=_CONNECTIONS, seconds=plan.of(4, 1)
        ),
        metrics={"rate": _CALLS, "call_us": METRICS["call_us"]},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="durable-stream",
        title="Stream ingest, committed",
        description=f"One request whose body is a line for each event, in {len(CHANNELS)} "
        "channels. The answer comes after the last commit.",
        group=_GROUP,
        measure=lambda peer, plan: stream(peer, plan, CHANNELS),
        metrics={"rate": RATE, "event_us": EVENT},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="durable-call",
        title="Publish calls from one connection",
        description="One connection publishes, each event after the answer to the last. The floor "
        "commits one row after the other in a worker thread, and does nothing else.",
        group=_GROUP,
        measure=lambda peer, plan: alone(peer, seconds=plan.of(4, 1)),
        metrics={
            "rate": _CALLS,
            "fdatasync_ms": Metric("fdatasync of 4 KiB", "ms", "neither", short="fdatasync ms"),
            "asleep_ms": Metric(
                "a commit by request, over a request and a commit",
                "ms",
                "neither",
                short="asleep ms",
            ),
        },
        only=("commits", *_BOTH),
        apart=True,
    ),
    Workload(
        name="durable-restart",
        title="A restart with a million publications",
        description=f"10,000 channels with {HISTORY} publications each are loaded before the "
        "server accepts connections. Start and memory are those of the same server with an empty "
        f"file less; the medians of {_RESTARTS} starts each.",
        group=_GROUP,
        measure=lambda peer, plan: restart(peer, publications=plan.of(1_000_000, 100_000)),
        metrics=_RESTART_METRICS,
        only=("repeater-durable",),
        rounds=1,
        apart=True,
    ),
)
