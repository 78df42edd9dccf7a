"""The names of what a broker keeps in the engine. All begin with the prefix of the settings.

    <prefix>:{tag}m:<channel>             hash    a stream's meta: e epoch, o top, u uid of the top,
                                                  v version, w epoch of the version
    <prefix>:{tag}s:<channel>             stream  `<offset>-<Unix ms>`, field d: the envelope
    <prefix>:{tag}i:<length>:<channel>:<key>  string  the result of an idempotency key
    <prefix>:{tag}c:<channel>             channel of the bus

A tag is there in a cluster only: what has the same one is on the same server.
"""

from __future__ import annotations


class Keys:
    """The names in one partition. Values, made once."""

    __slots__ = ("_meta", "_result", "_stream", "bus")

    def __init__(self, prefix: str, tag: str = "") -> None:
        begin = f"{prefix}:{{{tag}}}" if tag else f"{prefix}:"
        self._meta = f"{begin}m:".encode()
        self._stream = f"{begin}s:".encode()
        self._result = f"{begin}i:".encode()
        self.bus = f"{begin}c:".encode()
        """What the names of the bus's channels begin with."""

    def meta(self, channel: bytes) -> bytes:
        """The key of a stream's meta."""
        return self._meta + channel

    def stream(self, channel: bytes) -> bytes:
        """The key of a stream's publications."""
        return self._stream + channel

    def result(self, channel: bytes, key: str) -> bytes:
        """The key of the result of an idempotency key. The length tells channel and key apart."""
        return b"%b%d:%b:%b" % (self._result, len(channel), channel, key.encode())
