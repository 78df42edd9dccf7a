"""The kinds of flood, and to which servers each attack applies.

HTTP/2 is spoken over TLS only, so the floods of HTTP/2 need the servers' TLS variants. Commands are
Repeater's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.generator import floods
from benchmarks.generator.floods import Flood
from benchmarks.generator.protocol import Greeting
from benchmarks.peers.nchan import NCHAN_SSE
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import centrifugo, events

_PLAIN: Final = ("repeater-public", "uwebsockets", "nchan")
_SECURE: Final = ("repeater-public-tls", "nchan-tls")
_OWN: Final = ("repeater-public",)
FLOODED: Final = (*_SECURE[:1], *_PLAIN, *_SECURE[1:])
"""The names of all servers that are flooded."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of flood."""

    name: str
    title: str
    description: str
    make: Callable[[Peer], Flood]
    peers: Sequence[str] = _OWN
    """The servers to which the same attack applies."""


def _stream(peer: Peer) -> Greeting:
    """How a peer's stream is asked for: heads of WebSockets may have shorter lines."""
    subscribe = {"repeater-public": events, "nchan": NCHAN_SSE.subscribe}
    return subscribe.get(peer.name, peer.subscribe)([floods.ATTACK_CHANNEL])


def _own(make: Callable[..., Flood]) -> Callable[[Peer], Flood]:
    return lambda _peer: make(centrifugo([]))


def _plain(make: Callable[..., Flood]) -> Callable[[Peer], Flood]:
    return lambda peer: make(peer.subscribe([floods.ATTACK_CHANNEL]))


KINDS: Final = (
    Kind(
        name="pings",
        title="WebSocket pings",
        description="Empty pings on a WebSocket.",
        make=_plain(floods.pings),
        peers=_PLAIN,
    ),
    Kind(
        name="fragments",
        title="Empty fragments",
        description="One WebSocket message of empty fragments, without an end.",
        make=_plain(floods.fragments),
        peers=_PLAIN,
    ),
    Kind(
        name="refused",
        title="Refused commands",
        description="Publish commands of clients that may not publish.",
        make=_own(floods.refused_commands),
    ),
    Kind(
        name="settings",
        title="HTTP/2 SETTINGS",
        description="Empty SETTINGS frames, over TLS. The honest subscribers speak TLS as well.",
        make=lambda _peer: floods.settings(),
        peers=_SECURE,
    ),
    Kind(
        name="resets",
        title="HTTP/2 reset streams",
        description="Requests for the health check that are reset at once, over TLS. The honest "
        "subscribers speak TLS as well.",
        make=lambda peer: floods.reset_streams(peer.health),
        peers=_SECURE,
    ),
    Kind(
        name="handshakes",
        title="Handshakes",
        description="Connections that are upgraded to a WebSocket, and then reset.",
        make=_plain(floods.handshakes),
        peers=_PLAIN,
    ),
    Kind(
        name="cookies",
        title="Cookies",
        description="Requests for a stream of events with a cookie of 15 KB of quoted backslashes.",
        make=lambda peer: floods.cookies(_stream(peer)),
        peers=_PLAIN,
    ),
    Kind(
        name="history",
        title="History commands",
        description="Messages of 61 KB that are full of history commands, each for 100 "
        "publications of 4 KiB.",
        make=_own(floods.history_commands),
    ),
    Kind(
        name="deep-json",
        title="Deep JSON",
        description="Commands whose data is nested 1,000 and 30,000 deep.",
        make=_own(floods.deep_json),
    ),
    Kind(
        name="slow-heads",
        title="Slow heads",
        description="Each attacker has 250 connections, and sends a byte of a request's head on "
        "each of them every 250 ms.",
        make=lambda _peer: floods.slow_heads(),
        peers=_PLAIN,
    ),
    Kind(
        name="unread",
        title="Unread answers",
        description="Each attacker has 25 connections with pipelined GET requests, and reads none "
        "of the answers. From Repeater they want its API's description, from others a short page.",
        make=lambda peer: floods.unread_answers(peer.page or peer.health),
        peers=_PLAIN,
    ),
)
