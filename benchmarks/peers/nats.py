"""NATS over WebSocket: core NATS in Go; each subscriber speaks it as a browser would.

The adapter follows its documentation (docs.nats.io): clients speak the NATS protocol in binary
frames. A frame holds as much as the server had to send, so several events may share one. Core NATS
only, without JetStream: an event is delivered at most once, and a publisher gets no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.wire import BINARY_OPCODE, client_frame, handshake
from benchmarks.peers.installed import INSTALL, find_program, printed, program, version_in
from benchmarks.peers.peer import Peer

_SERVER: Final = "nats-server"
_CONFIGURATION: Final = """\
# Core NATS: JetStream is off, as it is by default. Delivery is at most once.
# Defaults that matter here: max_pending 64 MB and write_deadline 10 s for a slow reader;
# ping_interval 2 minutes. Go takes its number of threads from the one core it may use.
host: 127.0.0.1
port: -1  # plain clients: none here
websocket {
    host: 127.0.0.1
    port: PORT
    no_tls: true
    compression: false
}
"""
_CONNECT: Final = (
    b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"name":"benchmarks",'
    b'"lang":"python","version":"1","protocol":1}\r\n'
)


def _frame(protocol: bytes) -> bytes:
    return client_frame(protocol, BINARY_OPCODE)


_HEARTBEATS: Final[Mapping[bytes, bytes]] = {b"PING\r\n": _frame(b"PONG\r\n")}


def _command(folder: Path) -> Sequence[str]:
    file = folder / "nats.conf"
    file.write_text(_CONFIGURATION)
    return program(_SERVER), "--config", str(file)


def _greeting(lines: bytes) -> Greeting:
    """Connect and send `lines`; ready when the answer to a PING shows that they were read."""
    return Greeting(
        request=handshake("/"),
        commands=_frame(_CONNECT + lines + b"PING\r\n"),
        ready=b"PONG\r\n",
        heartbeats=_HEARTBEATS,
    )


def _subscribe(channels: Sequence[str]) -> Greeting:
    lines = (f"SUB {channel} {number}\r\n" for number, channel in enumerate(channels, 1))
    return _greeting("".join(lines).encode())


def _publish(channels: Sequence[str]) -> Entry:
    """PUB on a connection of the same kind; one frame holds all events of a call."""
    names = [channel.encode() for channel in channels]

    def encode(data: Sequence[bytes], _before: int) -> bytes:
        return _frame(
            b"".join(
                b"PUB %s %d\r\n%s\r\n" % (name, len(one), one) for one in data for name in names
            )
        )

    return Entry(greeting=_greeting(b""), encode=encode, refusals=(b"-ERR",))


NATS: Final = Peer(
    name="nats",
    title="NATS over WebSocket (Go)",
    version=lambda: version_in(printed(program(_SERVER), "--version")),
    missing=lambda: None if find_program(_SERVER) else f"no {_SERVER}; {INSTALL}",
    command=_command,
    configuration=lambda: _CONFIGURATION,
    subscribe=_subscribe,
    entry=_publish,
    capabilities=frozenset({"channels"}),
)
