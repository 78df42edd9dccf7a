"""Stalled: whether one reader that never reads delays the other thousand.

The stalled reader hears the same channel, and a second one that fills its socket: the kernel's
queue (`/proc/net/tcp`) tells when it is full, so that every measured event waits in its backlog.
It is measured for less than the server's write timeout; then a new one takes its place.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, Plan, Target, median, percentile
from benchmarks.load import PLAIN, Crowd
from benchmarks.publishers import Rest
from benchmarks.receivers import Deliveries
from benchmarks.servers import SERVICE, running
from benchmarks.wire import CHANNEL, WireError, handshake

_SUBSCRIBERS: Final = 1_000
_RATE: Final = 20
_FILLER: Final = b'"' + b"x" * 49_150 + b'"'
_FILLS: Final = 200  # times 48 KiB: more than any socket buffer of a default kernel
_STALLED_FILLS: Final = 3  # without growth of the kernel's queue: it is full


def stalled(plan: Plan) -> list[Figure]:
    """p99 of the delivery latency with and without the stalled reader, in alternation."""
    seconds, rounds = plan.of(4, 2), plan.of(5, 1)
    without, beside = list[float](), list[float]()
    with running(SERVICE) as child, Crowd(child.port) as crowd:
        crowd.open(_SUBSCRIBERS, PLAIN)
        deliveries = Deliveries(crowd, keep_all=True)
        with (
            contextlib.closing(Rest(child.port)) as rest,
            contextlib.closing(Rest(child.port, "filler")) as filler,
        ):
            deliveries.watch(rest)
            deliveries.run(rest, _RATE, _RATE)
            for _ in range(rounds):
                without.append(_p99(deliveries, rest, seconds))
                with _stalled_reader(child.port, filler):
                    beside.append(_p99(deliveries, rest, seconds))
    ratio = median(one / other for one, other in zip(beside, without, strict=True))
    return [
        Figure(
            name="stalled",
            what="p99 of the delivery latency beside a stalled reader, against without",
            value=ratio,
            unit="x",
            floor=median(without),
            ratio=ratio,
            target=Target(
                limit=1.1,
                side="at most",
                origin="a full outbox costs one failed append; the rest is noise of two cores",
            ),
            detail={
                "without_p99_ms": median(without),
                "stalled_p99_ms": median(beside),
                "rounds_without_ms": without,
                "rounds_stalled_ms": beside,
            },
        )
    ]


def _p99(deliveries: Deliveries, rest: Rest, seconds: int) -> float:
    del deliveries.latencies_ns[:]
    deliveries.run(rest, _RATE * seconds, _RATE)
    return percentile(deliveries.latencies_ns, 99) / 1e6


@contextlib.contextmanager
def _stalled_reader(port: int, filler: Rest) -> Iterator[None]:
    """A subscriber with a full socket and a backlog in the server, which must outlive the block."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.sendall(handshake(f"/ws?channel={CHANNEL}&channel=filler"))
        if not sock.recv(12).startswith(b"HTTP/1.1 101"):
            raise WireError("the stalled reader was refused")
        own_port: int = sock.getsockname()[1]
        _fill(port, own_port, filler)
        yield
        if _queued(port, own_port) is None:
            raise WireError("the stalled reader was cut before the measurement ended")


def _fill(port: int, own_port: int, filler: Rest) -> None:
    """Publish until the kernel takes nothing more for the stalled reader."""
    most, unchanged = 0, 0
    for _ in range(_FILLS):
        filler.publish(_FILLER)
        filler.wait()
        time.sleep(0.02)
        queued = _queued(port, own_port) or 0
        unchanged = 0 if queued > most else unchanged + 1
        most = max(most, queued)
        if unchanged == _STALLED_FILLS:
            return
    raise WireError("the stalled reader's socket did not fill")


def _queued(port: int, own_port: int) -> int | None:
    """Bytes that the server's kernel holds for this client; None if the connection is gone."""
    local, remote = f"0100007F:{port:04X}", f"0100007F:{own_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[2] == remote and fields[3] == "01":  # ESTABLISHED
            return int(fields[4].split(":")[0], 16)
    return None
