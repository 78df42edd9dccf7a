"""The adapters of the other servers in Python, and of uWebSockets, which Python drives here.

Servers without HTTP take events over one WebSocket, without an answer. This costs less than the
REST call with which Repeater is measured, so it favours these servers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.generator.protocol import HTTP_REFUSALS, Entry, Greeting
from benchmarks.generator.wire import client_frame, handshake, request
from benchmarks.peers.installed import INSTALL
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import plain, query

_SATURATED: Final = "at 40 us a delivery or more, the deliveries to 5,000 need a whole core"


def frames(channels: Sequence[str]) -> Entry:
    """Each event is a message on one WebSocket, without an answer."""
    return Entry(
        greeting=Greeting(request=handshake(f"/publish?{query(channels)}")),
        encode=lambda events, _before: b"".join(map(client_frame, events)),
    )


def post(channels: Sequence[str]) -> Entry:
    """Each event is a `POST /publish` on one connection."""
    target = f"/publish?{query(channels)}"
    return Entry(
        greeting=Greeting(request=b""),
        encode=lambda events, _before: b"".join(request(target, event) for event in events),
        answer=b"\r\n\r\nok",
        refusals=HTTP_REFUSALS,
    )


def _command(program: str) -> Callable[[Path], Sequence[str]]:
    return lambda _folder: (sys.executable, "-m", f"benchmarks.peers.{program}", "PORT")


def _configuration(program: str, settings: str) -> Callable[[], str]:
    return lambda: f"benchmarks/peers/{program}.py: {settings}"


def _needs(*modules: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed; {INSTALL}" if absent else None

    return missing


def _versions(*packages: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} {version(name)}" for name in packages)


def _socketify_missing() -> str | None:
    try:
        ctypes.CDLL("libuv.so.1")
    except OSError:
        return f"libuv (libuv1) not installed; {INSTALL}"
    return _needs("socketify")()


QUART_TRIO: Final = Peer(
    name="quart-trio",
    title="Quart-Trio on Hypercorn, a memory channel a client (Python)",
    version=_versions("quart-trio", "hypercorn", "trio"),
    command=_command("quart_trio_baseline"),
    configuration=_configuration(
        "quart_trio_baseline",
        "Hypercorn's trio worker, no access log, backlog=4096, keep_alive_max_requests=1000000",
    ),
    subscribe=plain,
    entry=post,
    capabilities=frozenset({"channels", "calls"}),
    baseline=True,
    most=1_000,
    most_because="at more than 100 us a delivery, a core manages less than half of the deliveries "
    "to 1,000 already; and it accepts 1,000 connections a second at first, then ever fewer",
)

WEBSOCKETS: Final = Peer(
    name="websockets",
    title="websockets broadcast() on uvloop (Python)",
    version=_versions("websockets", "uvloop"),
    command=_command("websockets_asyncio"),
    configuration=_configuration(
        "websockets_asyncio", "uvloop, broadcast(), compression=None, backlog=4096"
    ),
    subscribe=plain,
    entry=frames,
    capabilities=frozenset({"channels"}),
)

WEBSOCKETS_TRIO: Final = Peer(
    name="websockets-trio",
    title="websockets broadcast() on Trio (Python)",
    version=_versions("websockets", "trio"),
    command=_command("websockets_trio"),
    configuration=_configuration("websockets_trio", "broadcast(), compression=None, backlog=4096"),
    subscribe=plain,
    entry=frames,
    capabilities=frozenset({"channels"}),
    core=False,
    baseline=True,
    most=1_000,
    most_because=_SATURATED,
)

TRIO_WEBSOCKET: Final = Peer(
    name="trio-websocket",
    title="trio-websocket, a memory channel a client (Python)",
    version=_versions("trio-websocket", "trio"),
    command=_command("trio_websocket_channels"),
    configuration=_configuration("trio_websocket_channels", "its defaults"),
    subscribe=plain,
    entry=frames,
    capabilities=frozenset({"channels"}),
    core=False,
    baseline=True,
    most=1_000,
    most_because=_SATURATED,
)

PICOWS: Final = Peer(
    name="picows",
    title="picows on uvloop (Cython)",
    version=_versions("picows", "uvloop"),
    missing=_needs("picows", "uvloop"),
    command=_command("picows_uvloop"),
    configuration=_configuration("picows_uvloop", "uvloop, WSListener, backlog=4096"),
    subscribe=plain,
    entry=frames,
    capabilities=frozenset({"channels"}),
)

UWEBSOCKETS: Final = Peer(
    name="uwebsockets",
    title="uWebSockets through socketify (C++)",
    version=_versions("socketify"),
    missing=_socketify_missing,
    command=_command("uwebsockets"),
    configuration=_configuration(
        "uwebsockets",
        "topics, compression DISABLED, max_backpressure 1 MiB (past it: cut), idle_timeout 120 "
        "with pings, its own loop instead of asyncio's, backlog 4096",
    ),
    subscribe=plain,
    entry=post,
    flood=frames,
    capabilities=frozenset({"channels", "calls"}),
    health="/health/live",
)

PYTHON_PEERS: Final = (
    UWEBSOCKETS,
    PICOWS,
    WEBSOCKETS,
    WEBSOCKETS_TRIO,
    TRIO_WEBSOCKET,
    QUART_TRIO,
)
