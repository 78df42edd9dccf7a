"""Valkey as the engine: what a publication costs the server, and what it costs the engine.

Every event has 136 bytes, and each of 100 channels keeps 100 of them. The server that keeps them in
memory takes turns with one whose Valkey listens on a Unix socket of the same machine, and for one
connection with a program that does nothing but run the publishing script.
"""

from __future__ import annotations

import re
import socket
from time import monotonic
from typing import Final

import msgspec

from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import WireError
from benchmarks.model import METRICS, Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.peers.valkey import SOCKET
from benchmarks.servers import Child, Spent, started
from benchmarks.workloads.calls import CHANNELS, closed_loops
from benchmarks.workloads.publishing import EVENT, RATE, accepted, ask, lines
from benchmarks.workloads.workload import Workload

_CONNECTIONS: Final = 64
_PATIENCE: Final = 60.0  # seconds for one answer


def ingest(peer: Peer, *, events: int) -> Turn:
    """One turn of a stream; with Valkey also how many publications went in a script."""
    body = lines(CHANNELS, events)
    with (
        started(peer) as child,
        socket.create_connection(("127.0.0.1", child.port), _PATIENCE) as sock,
    ):
        busy, spent, scripts, start = Busy(), Spent(child, apart=True), _scripts(child), monotonic()
        busy.begin()
        if (answer := ask(sock, body)) != accepted(events):
            raise WireError(f"unexpected answer: {answer[:200]!r}")
        busy.end()
        took = monotonic() - start
        values = {"rate": events / took, **spent.by_event("event_us", events)}
        if ran := _scripts(child) - scripts:
            values["together"] = events / ran
    return Turn(values=values, generator=busy.share)


def _scripts(child: Child) -> int:
    """How many scripts the engine has run; 0 without an engine."""
    engines = child.pids()[1:]
    if not engines:
        return 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"/proc/{engines[0]}/cwd/{SOCKET}")
        sock.sendall(b"INFO commandstats\r\n")
        found = b""
        while not found.endswith(b"\r\n\r\n") and (data := sock.recv(65_536)):
            found += data
    return sum(map(int, re.findall(rb"cmdstat_eval(?:sha)?:calls=(\d+)", found)))


def alone(peer: Peer, *, seconds: float) -> Turn:
    """One turn with one connection; of the floor, as many scripts as it runs."""
    if not peer.floor:
        return closed_loops(peer, connections=1, seconds=seconds, apart=True)
    with (
        started(peer) as child,
        socket.create_connection(("127.0.0.1", child.port), _PATIENCE) as sock,
    ):
        sock.sendall(b"%g\n" % seconds)
        found = msgspec.json.decode(sock.recv(65_536), type=dict[str, float])
    return Turn(values={"publish_p50_ms": found["evalsha_ms"]})


_BOTH: Final = ("repeater-memory", "repeater-valkey")
_GROUP: Final = "Valkey"
_CALLS: Final = Metric("calls a second", "/s", "higher", "per second")
_ENGINE: Final = Metric("CPU of Valkey per event", "us", short="Valkey us")
_TOGETHER: Final = Metric("publications in a script", "", "higher", short="in a script")

WORKLOADS: Final = (
    Workload(
        name="valkey-calls",
        title=f"Publish calls from {_CONNECTIONS} connections, on Valkey",
        description=f"{_CONNECTIONS} connections publish into {len(CHANNELS)} channels, each after "
        "the answer to its last call.",
        group=_GROUP,
        measure=lambda peer, plan: closed_loops(
            peer, connections=_CONNECTIONS, seconds=plan.of(4, 1), apart=True
        ),
        metrics={"rate": _CALLS, "call_us": METRICS["call_us"], "engine_us": _ENGINE},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="valkey-stream",
        title="Stream ingest, on Valkey",
        description=f"One request whose body is a line for each event, in {len(CHANNELS)} "
        "channels. The answer comes after the last script. Server, Valkey and the load generator "
        "share two cores.",
        group=_GROUP,
        measure=lambda peer, plan: ingest(peer, events=plan.of(200_000, 50_000)),
        metrics={"rate": RATE, "event_us": EVENT, "engine_us": _ENGINE, "together": _TOGETHER},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="valkey-call",
        title="Publish calls from one connection, on Valkey",
        description="One connection publishes, each event after the answer to the last. The floor "
        "runs the same script by the same kind of connection, and does nothing else.",
        group=_GROUP,
        measure=lambda peer, plan: alone(peer, seconds=plan.of(4, 1)),
        metrics={"rate": _CALLS, "engine_us": _ENGINE},
        only=("evalsha", *_BOTH),
        apart=True,
    ),
)
