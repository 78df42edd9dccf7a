"""From publications to the bytes of a client's protocol, once per batch and not per client.

A codec is what is said (plain data, or Centrifugo pushes) times how messages are told apart
(WebSocket frames, or one ASGI message each). It returns chunks: with frames a whole batch is one
chunk, which goes to every subscriber in one system call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from service.protocol.frames import PING_FRAME, text_frame
from service.publication import Publication

_encode = msgspec.json.Encoder().encode

Say = Callable[[Publication], bytes]


class Codec:
    """How one kind of client is spoken to. Stateless; shared by all clients of the kind.

    Compared by identity: listeners are grouped by codec, and each group is encoded for once.
    """

    __slots__ = ("_say", "framed", "name", "ping")

    def __init__(self, name: str, say: Say, *, framed: bool, ping: bytes | None) -> None:
        self.name = name
        self.ping = ping
        self._say = say
        self.framed = framed

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    def publications(self, publications: Sequence[Publication]) -> list[bytes]:
        """The chunks that carry these publications, in order."""
        messages = [self._say(publication) for publication in publications]
        if self.framed:
            return [b"".join(map(text_frame, messages))]
        return messages

    def message(self, payload: bytes) -> bytes:
        """The chunk that carries one ready-made message."""
        return text_frame(payload) if self.framed else payload


def say_data(publication: Publication) -> bytes:
    """A plain subscriber gets the data as it was published, verbatim."""
    return publication.data


def say_push(publication: Publication) -> bytes:
    """A Centrifugo publication push (protocol, section 5).

    The epoch goes with offset 1 only, so that a client that had none learns it.
    """
    parts = [
        b'{"push":{"channel":',
        _encode(publication.channel),
        b',"pub":{"data":',
        one_line(publication.data),
    ]
    if publication.offset:
        parts.append(b',"offset":%d' % publication.offset)
        if publication.offset == 1:
            parts += (b',"epoch":', _encode(publication.epoch))
    if publication.tags:
        parts += (b',"tags":', _encode(publication.tags))
    if publication.info is not None:
        parts += (b',"info":', _encode(publication.info))
    parts.append(b"}}}")
    return b"".join(parts)


def one_line(data: bytes) -> bytes:
    """JSON text without raw line breaks, which separate messages (protocol, section 2.2)."""
    if b"\n" in data or b"\r" in data:
        return msgspec.json.format(data, indent=-1)
    return data


PLAIN: Final = Codec("plain", say_data, framed=True, ping=PING_FRAME)
CENTRIFUGE_JSON: Final = Codec("centrifuge-json", say_push, framed=True, ping=text_frame(b"{}"))
# An ASGI server frames by itself and offers no ping: a plain client there has no heartbeat.
PLAIN_ASGI: Final = Codec("plain-asgi", say_data, framed=False, ping=None)
CENTRIFUGE_JSON_ASGI: Final = Codec("centrifuge-json-asgi", say_push, framed=False, ping=b"{}")
