"""Centrifugo 6, the server whose client protocol Repeater speaks, in Go.

Written from its documentation (centrifugal.dev) and from the protocol; it is in neither Debian nor
PyPI, and we have not run it here. Subscribers are those of `repeater-centrifugo`, byte for byte;
publishing is its HTTP API with a key, floods are publish commands of a client.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.generator.protocol import Entry
from benchmarks.peers.installed import printed, program, unfit, version_in
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import centrifugo, commands, rest

_SERVER: Final = "centrifugo"
_OLDEST: Final = 6  # the first version whose configuration is nested as below
_KEY: Final = "benchmarks"  # the key of a server that runs on loopback for one turn
_CHANNEL: Final = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_client": True,
    "allow_publish_for_anonymous": True,
}
_SETTINGS: Final = {
    "http_server": {"address": "127.0.0.1", "port": "PORT"},
    "client": {"allow_anonymous_connect_without_token": True},
    "channel": {"without_namespace": _CHANNEL},
    "http_api": {"key": _KEY},
    "usage_stats": {"disabled": True},
    "log": {"level": "error"},
    "shutdown": {"timeout": "5s"},
}


def _version() -> str:
    return version_in(printed(program(_SERVER), "version"))


def _configuration() -> str:
    # The port must be a number, so the placeholder loses its quotes.
    return json.dumps(_SETTINGS, indent=2).replace('"PORT"', "PORT") + "\n"


def _command(folder: Path) -> Sequence[str]:
    file = folder / "config.json"
    file.write_text(_configuration())
    return program(_SERVER), "--config", str(file)


def _publish(channels: Sequence[str]) -> Entry:
    return rest(channels, headers=f"X-API-Key: {_KEY}\r\n".encode())


CENTRIFUGO: Final = Peer(
    name="centrifugo",
    title="Centrifugo (Go)",
    version=_version,
    missing=lambda: unfit(_SERVER, _OLDEST),
    command=_command,
    configuration=_configuration,
    subscribe=centrifugo,
    entry=_publish,
    flood=commands,
    capabilities=frozenset({"channels", "calls"}),
)
