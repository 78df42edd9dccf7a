"""Mercure 1, a hub for Server-Sent Events inside Caddy, in Go.

Written from its documentation (mercure.rocks) alone; it is in neither Debian nor PyPI, and we have
not run it here. Subscribers are anonymous; publishing is a POST form with an access token. The hub
flushes each event by itself, in a chunk of a chunked answer. It keeps no history here (`transport
local`), as the other servers keep none on disk. A subscriber gets one copy of an event in several
topics, even if the subscriber listens to more than one of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import jwt

from benchmarks.generator.protocol import HTTP_REFUSALS, STREAMING, Entry, Greeting
from benchmarks.peers.installed import printed, program, unfit, version_in
from benchmarks.peers.peer import Peer

_SERVER: Final = "mercure"
_OLDEST: Final = 1  # earlier versions have other topics, tokens and directives
_PATH: Final = "/.well-known/mercure"
_ISSUER: Final = "https://benchmarks.invalid"
_HUB: Final = f"http://127.0.0.1{_PATH}"
# HS256 needs 32 bytes. The server runs on loopback for one turn.
_KEY: Final = "the-key-of-a-benchmark-on-loopback"
_DAY: Final = 86_400  # seconds
_CONFIGURATION: Final = f"""\
{{
	admin off
	auto_https off
	persist_config off
	grace_period 1s
	storage file_system FOLDER
	log {{
		level ERROR
	}}
}}

http://127.0.0.1:PORT {{
	bind 127.0.0.1
	mercure {{
		issuer {_ISSUER} {{
			publisher {{
				jwt {_KEY} HS256
			}}
			subscriber {{
				jwt {_KEY} HS256
			}}
		}}
		resource_identifier {_HUB}
		anonymous
		transport local
	}}
	respond "Not Found" 404
}}
"""


def _version() -> str:
    return version_in(printed(program(_SERVER), "version"))


def _command(folder: Path) -> Sequence[str]:
    file = folder / "Caddyfile"
    file.write_text(_CONFIGURATION.replace("FOLDER", str(folder / "caddy")))
    return program(_SERVER), "run", "--config", str(file), "--adapter", "caddyfile"


def _subscribe(channels: Sequence[str]) -> Greeting:
    """Server-Sent Events of public updates; the stream begins with a comment."""
    query = urlencode([("match", channel) for channel in channels])
    head = f"GET {_PATH}?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
    return Greeting(
        request=head.encode(), accepted=STREAMING, ready=b":\n", heartbeats={}, stream=True
    )


def _token() -> str:
    """An access token (RFC 9068) that may publish anything."""
    now = int(time.time())
    grant = {
        "type": "https://mercure.rocks/authorization-detail",
        "actions": ["publish"],
        "topics": [{"match": "*"}],
    }
    claims = {
        "iss": _ISSUER,
        "sub": _ISSUER,
        "client_id": _ISSUER,
        "aud": _HUB,
        "iat": now,
        "exp": now + _DAY,
        "jti": "benchmarks",
        "authorization_details": [grant],
    }
    return jwt.encode(claims, _KEY, algorithm="HS256", headers={"typ": "at+jwt"})


def _publish(channels: Sequence[str]) -> Entry:
    """A POST form on one connection; the first of several channels is the canonical topic."""
    topics = urlencode([("topic", channel) for channel in channels]).encode()
    head = (
        f"POST {_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {_token()}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: "
    ).encode()

    def call(data: bytes) -> bytes:
        body = topics + b"&" + urlencode({"data": data}).encode()
        return b"%s%d\r\n\r\n%s" % (head, len(body), body)

    return Entry(
        greeting=Greeting(request=b"", heartbeats={}),
        encode=lambda data, _before: b"".join(map(call, data)),
        answer=b"HTTP/1.1 200",
        refusals=HTTP_REFUSALS,
    )


MERCURE: Final = Peer(
    name="mercure",
    title="Mercure, Server-Sent Events (Go)",
    version=_version,
    missing=lambda: unfit(_SERVER, _OLDEST),
    command=_command,
    configuration=lambda: _CONFIGURATION,
    subscribe=_subscribe,
    entry=_publish,
    capabilities=frozenset({"channels", "calls"}),
)
