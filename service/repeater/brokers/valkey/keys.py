"""The names of what a broker keeps in the engine. All begin with the prefix of the settings.

    <prefix>:{tag}m:<channel>                 hash    a stream's meta: e epoch, o top, u uid of the
                                                      top, v version, w epoch of the version
    <prefix>:{tag}s:<channel>                 stream  `<offset>-<Unix ms>`, field d: the envelope
    <prefix>:{tag}i:<length>:<channel>:<key>  string  the result of an idempotency key
    <prefix>:{tag}r:<source>                  hash    the rows of a source: name, and the result;
                                                      the empty name has the highest term
    <prefix>:{tag}c:<channel>                 channel of the bus

A tag is there in a cluster only: what has the same one is on the same server.
"""

from __future__ import annotations

from typing import NamedTuple


class Names(NamedTuple):
    """The names of one channel."""

    channel: bytes
    meta: bytes
    """The key of its stream's meta."""
    stream: bytes
    """The key of its stream's publications."""
    bus: bytes
    """Its name on the bus."""


class Keys:
    """The names in one partition. Values, made once."""

    __slots__ = ("_begin",)

    def __init__(self, prefix: str, tag: str = "") -> None:
        """Begin all names with a prefix and, in a cluster, with a tag in its braces."""
        self._begin = f"{prefix}:{tag}".encode()

    def names(self, channel: str) -> Names:
        """The names of a channel."""
        # A channel's name is text; if it is not, this is not the place to fail.
        name, begin = channel.encode(errors="surrogatepass"), self._begin
        return Names(name, begin + b"m:" + name, begin + b"s:" + name, begin + b"c:" + name)

    def result(self, names: Names, key: str) -> bytes:
        """The key of the result of an idempotency key. The length tells channel and key apart."""
        channel = names.channel
        return b"%bi:%d:%b:%b" % (
            self._begin,
            len(channel),
            channel,
            key.encode(errors="surrogatepass"),
        )

    def rows(self, source: str) -> bytes:
        """The key of the rows of a source, of the channels of this partition."""
        return b"%br:%b" % (self._begin, source.encode(errors="surrogatepass"))
