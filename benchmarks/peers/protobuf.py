"""Repeater's Protobuf clients beside its JSON clients, and the floor of each with the same bytes.

A floor elsewhere sends the bare event. Here it sends what the server sends: the event in a push of
the client protocol, so that the ratio to it has nothing of the format's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.generator import protobuf, wire
from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.wire import BINARY_OPCODE, TEXT_OPCODE, client_frame, handshake
from benchmarks.peers.floors import FLOOR
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import CENTRIFUGO_PATH, VARIANTS

_POSITIONED: Final = 9
_RECOVERABLE: Final = 10
_JOIN_LEAVE: Final = 11
_HEARTBEATS: Final = {b"\0": client_frame(b"\0", BINARY_OPCODE)}
_FIRST_OFFSET: Final = 1
"""Of the events of a floor, which counts them as the server's history does."""


def connecting(*commands: bytes, ready: bytes) -> Greeting:
    """A Protobuf client that says these commands behind its `connect`, in one message."""
    message = protobuf.connect(1) + b"".join(commands)
    return Greeting(
        request=handshake(f"{CENTRIFUGO_PATH}?format=protobuf"),
        commands=client_frame(message, BINARY_OPCODE),
        ready=ready,
        heartbeats=_HEARTBEATS,
    )


def _subscribing(*wishes: int) -> Callable[[Sequence[str]], Greeting]:
    def greeting(channels: Sequence[str]) -> Greeting:
        commands = (
            protobuf.subscribe(number, channel, wishes)
            for number, channel in enumerate(channels, 2)
        )
        return connecting(*commands, ready=protobuf.subscribed(len(channels) + 1))

    return greeting


def _floor(name: str, title: str, push: Callable[[bytes, int], bytes], opcode: int) -> Peer:
    def feed(_channels: Sequence[str]) -> Entry:
        def encode(events: Sequence[bytes], before: int) -> bytes:
            pushes = (push(one, at) for at, one in enumerate(events, before + _FIRST_OFFSET))
            return b"".join(wire.server_frame(one, opcode) for one in pushes)

        return msgspec.structs.replace(FLOOR.entry([]), encode=encode)

    return msgspec.structs.replace(
        FLOOR, name=f"floor-{name}", title=f"floor: the same loop, {title}", entry=feed
    )


def _protobuf(like: Peer, subscribe: Callable[[Sequence[str]], Greeting], what: str) -> Peer:
    suffix = like.name.removeprefix("repeater").removeprefix("-centrifugo")
    return msgspec.structs.replace(
        like,
        name=f"repeater-protobuf{suffix}",
        title=f"Repeater, Protobuf{what}",
        subscribe=subscribe,
    )


_JSON: Final = {peer.name: peer for peer in VARIANTS}
_CENTRIFUGO: Final = _JSON["repeater-centrifugo"]
_RECOVERY: Final = _JSON["repeater-recovery"]
_PRESENCE: Final = _JSON["repeater-presence"]

PROTOBUF: Final = _protobuf(_CENTRIFUGO, _subscribing(), "")
PROTOBUF_VARIANTS: Final = (
    PROTOBUF,
    _protobuf(_RECOVERY, _subscribing(_POSITIONED, _RECOVERABLE), " with recovery"),
    _protobuf(_PRESENCE, _subscribing(_POSITIONED, _RECOVERABLE, _JOIN_LEAVE), " with presence"),
)
FLOOR_JSON: Final = _floor(
    "json", "a push in JSON", lambda event, at: wire.push(event, at), TEXT_OPCODE
)
FLOOR_PROTOBUF: Final = _floor(
    "protobuf",
    "a push in Protobuf",
    lambda event, at: protobuf.push(wire.CHANNEL, event, at),
    BINARY_OPCODE,
)

FORMATS: Final = (
    FLOOR_JSON,
    FLOOR_PROTOBUF,
    _CENTRIFUGO,
    PROTOBUF,
    _RECOVERY,
    PROTOBUF_VARIANTS[1],
    _PRESENCE,
    PROTOBUF_VARIANTS[2],
)
"""In the order in which they take their turns: what is compared runs one after the other."""
