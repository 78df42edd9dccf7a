"""The adapter of Repeater itself, and its variants with other ways to subscribe."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.generator.protocol import HTTP_REFUSALS, STREAMING, Entry, Greeting
from benchmarks.generator.secure import tls_arguments
from benchmarks.generator.wire import DEFLATE, client_frame, handshake, request
from benchmarks.peers.peer import Peer

ARGUMENTS: Final = ("serve", "--dev", "--no-comments", "--host", "127.0.0.1")
SERVE: Final = ("-m", "repeater", *ARGUMENTS)
CENTRIFUGO_PATH: Final = "/connection/websocket"
_API_KEY: Final = "key-of-the-benchmarks"
# As strangers meet the server: every option that opens something is closed, but for subscribing
# and reading history without a token. Tokens are read, and limits have their defaults.
_PUBLIC: Final = {
    "REPEATER_ALLOW_ANONYMOUS": "true",
    "REPEATER_API_KEY": _API_KEY,
    "REPEATER_TOKEN__HMAC_SECRET_KEY": "a secret of 32 bytes or a few more",
    "REPEATER_CHANNEL__ALLOW_HISTORY_FOR_CLIENT": "true",
    "REPEATER_CHANNEL__ALLOW_HISTORY_FOR_ANONYMOUS": "true",
}
_PUBLIC_ARGUMENTS: Final = ("-m", "repeater", "serve", "--no-comments", "--host", "127.0.0.1")
# A flood publishes by one client's commands, as fast as it can; the other servers have no limit.
_NO_LIMIT: Final = {"REPEATER_LIMITS__COMMANDS_PER_SECOND": "0"}
_PRESENCE: Final = {"REPEATER_CHANNEL__PRESENCE": "true", "REPEATER_CHANNEL__JOIN_LEAVE": "true"}


def _command(_folder: Path) -> Sequence[str]:
    return sys.executable, *SERVE, "--port", "PORT"


def _configuration() -> str:
    return shlex.join(("python", *SERVE, "--port", "PORT"))


def query(channels: Sequence[str]) -> str:
    """The query of a URL that names these channels."""
    return "&".join(f"channel={channel}" for channel in channels)


def plain(channels: Sequence[str]) -> Greeting:
    """A WebSocket; each of its messages is an event."""
    return Greeting(request=handshake(f"/ws?{query(channels)}"))


def deflated(channels: Sequence[str]) -> Greeting:
    """The same WebSocket, compressed."""
    return Greeting(request=handshake(f"/ws?{query(channels)}", DEFLATE))


def events(channels: Sequence[str]) -> Greeting:
    """Server-Sent Events."""
    head = f"GET /events?{query(channels)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    return Greeting(request=head.encode(), accepted=STREAMING, ready=b"\n\nid: ", stream=True)


def centrifugo(channels: Sequence[str], wishes: str = "", token: str = "") -> Greeting:
    """A Centrifugo client that connects and subscribes in one message.

    `wishes` are more members of each subscribe request, each with a comma after it.
    """
    proof = f'"token":"{token}"' if token else ""
    commands = [f'{{"connect":{{{proof}}},"id":1}}'] + [
        f'{{"subscribe":{{{wishes}"channel":"{channel}"}},"id":{number}}}'
        for number, channel in enumerate(channels, 2)
    ]
    return Greeting(
        request=handshake(CENTRIFUGO_PATH),
        commands=client_frame("\n".join(commands).encode()),
        ready=f'"id":{len(channels) + 1}'.encode(),
    )


def recovering(channels: Sequence[str]) -> Greeting:
    """A Centrifugo client with positions and recovery."""
    return centrifugo(channels, '"positioned":true,"recoverable":true,')


def noticed(channels: Sequence[str]) -> Greeting:
    """A Centrifugo client with positions, recovery, joins and leaves."""
    return centrifugo(channels, '"positioned":true,"recoverable":true,"join_leave":true,')


def rest(channels: Sequence[str], headers: bytes = b"") -> Entry:
    """`POST /api/publish`, or `/api/broadcast` into several channels, on one connection.

    `headers` are more lines of each request's head.
    """
    names = json.dumps(list(channels)).encode()

    def call(data: bytes) -> bytes:
        if len(channels) == 1:
            body = b'{"channel":%s,"data":%s}' % (names[1:-1], data)
            return request("/api/publish", body, headers)
        return request("/api/broadcast", b'{"channels":%s,"data":%s}' % (names, data), headers)

    return Entry(
        greeting=Greeting(request=b""),
        encode=lambda data, _before: b"".join(map(call, data)),
        answer=b'\r\n\r\n{"result"',
        refusals=(*HTTP_REFUSALS, b'{"error"', b'"responses":[{"error"'),
    )


def commands(channels: Sequence[str]) -> Entry:
    """Publish commands on one Centrifugo WebSocket; one message holds all events of a call."""
    (channel,) = channels

    def encode(data: Sequence[bytes], before: int) -> bytes:
        return client_frame(
            b"\n".join(
                b'{"publish":{"channel":"%s","data":%s},"id":%d}' % (channel.encode(), one, number)
                for number, one in enumerate(data, before + 2)
            )
        )

    greeting = Greeting(
        request=handshake(CENTRIFUGO_PATH),
        commands=client_frame(b'{"connect":{},"id":1}'),
        ready=b'"connect"',
    )
    return Entry(greeting=greeting, encode=encode, answer=b'"publish":{}', refusals=(b'"error"',))


REPEATER: Final = Peer(
    name="repeater",
    title="Repeater (Trio, Python)",
    version=lambda: importlib.metadata.version("repeater-server"),
    command=_command,
    configuration=_configuration,
    subscribe=plain,
    entry=rest,
    flood=commands,
    settings=lambda: _NO_LIMIT,
    capabilities=frozenset({"channels", "calls", "batch", "stream", "recovery", "tls"}),
)


def _variant(name: str, title: str, **changes: Any) -> Peer:
    return msgspec.structs.replace(
        REPEATER,
        name=f"repeater-{name}",
        title=f"Repeater, {title}",
        ordinary=False,
        core=False,
        variant_of="repeater",
        **changes,
    )


def _public_command(_folder: Path) -> Sequence[str]:
    return sys.executable, *_PUBLIC_ARGUMENTS, "--port", "PORT"


def _public_configuration() -> str:
    settings = (f"{name}={shlex.quote(value)}" for name, value in _PUBLIC.items())
    return " ".join((*settings, shlex.join(("python", *_PUBLIC_ARGUMENTS, "--port", "PORT"))))


def _public_rest(channels: Sequence[str]) -> Entry:
    return rest(channels, b"X-API-Key: %s\r\n" % _API_KEY.encode())


def _public() -> Mapping[str, str]:
    return _PUBLIC


def _compressing() -> Mapping[str, str]:
    return {**_NO_LIMIT, "REPEATER_COMPRESSION": "true"}


def _noticing() -> Mapping[str, str]:
    return {**_NO_LIMIT, **_PRESENCE}


VARIANTS: Final = (
    _variant("centrifugo", "Centrifugo protocol", subscribe=centrifugo),
    _variant("recovery", "Centrifugo protocol with recovery", subscribe=recovering),
    _variant(
        "presence",
        "Centrifugo protocol with presence",
        subscribe=noticed,
        settings=_noticing,
        quiet_first=True,
    ),
    _variant("sse", "Server-Sent Events", subscribe=events),
    _variant("deflate", "compressed WebSocket", subscribe=deflated, settings=_compressing),
    _variant(
        "tls",
        "WebSocket behind TLS",
        command=lambda folder: (*_command(folder), *tls_arguments()),
        secure=True,
    ),
    _variant(
        "public",
        "as strangers meet it",
        command=_public_command,
        configuration=_public_configuration,
        settings=_public,
        entry=_public_rest,
        health="/health/live",
        page="/openapi.json",
    ),
    _variant(
        "public-tls",
        "as strangers meet it, behind TLS with HTTP/2",
        command=lambda folder: (*_public_command(folder), *tls_arguments()),
        configuration=_public_configuration,
        settings=_public,
        entry=_public_rest,
        secure=True,
        health="/health/live",
        page="/openapi.json",
    ),
)
