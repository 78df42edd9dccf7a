"""How presence is kept in the engine: the names of its keys, and the row of a client.

    <prefix>:{tag}pn:<channel>         sorted set  nodes with clients in the channel, by the Unix
                                                   milliseconds until which they are alive
    <prefix>:{tag}pi:<node>:<channel>  hash        clients of the node, with their rows; under the
                                                   empty name the number of the last change
    <prefix>:{tag}pu:<node>:<channel>  set         their users

All of it ends by itself when the node does not keep it alive. A row is msgpack and only grows at
its end, so that two versions of Repeater can run side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.cluster.foreign import UNREADABLE
from repeater.json_text import json_text
from repeater.publication import ClientInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.valkey.servers import Servers


class Names:
    """The names of one channel, in its partition. Values."""

    __slots__ = ("_begin", "_channel", "nodes", "partition")

    def __init__(self, servers: Servers, prefix: str, channel: str) -> None:
        """Find where the channel is."""
        self.partition = servers.partition_of(channel)
        self._begin = f"{prefix}:{servers.tag(self.partition)}".encode()
        # A channel's name is text; if it is not, this is not the place to fail.
        self._channel = channel.encode(errors="surrogatepass")
        self.nodes = self._begin + b"pn:" + self._channel

    def infos(self, node: bytes) -> bytes:
        """The clients of a node."""
        return b"%bpi:%b:%b" % (self._begin, node, self._channel)

    def users(self, node: bytes) -> bytes:
        """The users of a node."""
        return b"%bpu:%b:%b" % (self._begin, node, self._channel)


class _Row(msgspec.Struct, array_like=True, frozen=True):
    user: str
    conn_info: bytes | None = None
    chan_info: bytes | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Row).decode


def row_of(info: ClientInfo) -> bytes:
    """The row of a client."""
    return _encode(_Row(info.user, _bytes(info.conn_info), _bytes(info.chan_info)))


def read_rows(rows: Mapping[bytes, bytes], into: dict[str, ClientInfo]) -> int:
    """Read a node's clients into a dictionary; returns how many rows no node has written.

    Whoever can write into the engine can write anything, so rows are checked like a stranger's
    bytes.
    """
    foreign = 0
    for name, row in rows.items():
        if not name:
            continue  # The number of the last change.
        try:
            client, found = name.decode(), _decode(row)
            into[client] = ClientInfo(
                found.user, client, _text(found.conn_info), _text(found.chan_info)
            )
        except UNREADABLE:
            foreign += 1
    return foreign


def _bytes(text: msgspec.Raw | None) -> bytes | None:
    return None if text is None else bytes(text)


def _text(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(json_text(text))
