"""Encodes publications as the bytes of a client's protocol: once per batch, not once per client.

A codec combines a message format (plain data, or Centrifugo pushes) with a framing (WebSocket
frames, lines of a response, or one ASGI message each). It returns chunks: with framing a whole
batch is one chunk, which goes to each subscriber in one system call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Self

import msgspec

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.filters import TagsFilter, compile_filter
from repeater.protocol.centrifugo.fossil import delta_or_full
from repeater.protocol.centrifugo.replies import Push, encode_push
from repeater.protocol.websocket.frames import PING_FRAME, text_frame
from repeater.publication import Announcement, Publication

_encode = msgspec.json.Encoder().encode

_AROUND: Final = 160
"""At most the bytes around a publication's data, channel, tags and info: names of fields, an offset
of 20 digits, an epoch of up to 32 characters, and the framing."""

Say = Callable[[Publication], bytes]
"""The message that carries one publication."""

Wrap = Callable[[bytes], bytes]
"""The message that carries a push, from the push object."""

Frame = Callable[[bytes], bytes]
"""The framed message: the frame separates the message from the next one."""


def bare(push: bytes) -> bytes:
    """The push object as it is, for a unidirectional client (protocol, section 15)."""
    return push


def enveloped(push: bytes) -> bytes:
    """The push object inside `push`, which tells it from a reply (protocol, section 5)."""
    return b'{"push":' + push + b"}"


class Codec:
    """The message format and framing of one kind of client. Stateless; all these clients share it.

    Compared by identity: listeners are grouped by codec, and each group needs one encoding only.
    """

    __slots__ = ("_frame", "_say", "_wrap", "answered", "delta", "following", "name", "ping")

    def __init__(
        self,
        name: str,
        *,
        say: Say,
        wrap: Wrap | None,
        frame: Frame | None,
        ping: bytes | None,
        answered: bool = True,
    ) -> None:
        """Combine a message format and a framing.

        Args:
            name: For logs and metrics.
            say: Makes a message of a publication.
            wrap: Makes a message of a push; None for a client that gets publications only.
            frame: None where each chunk must be one message, because the ASGI server frames.
            ping: The message that asks whether the client is still there; None if the client
                cannot be asked.
            answered: Whether the client answers a ping. If not, a ping only keeps a stream from
                being idle, and TCP must find out that a client has vanished.
        """
        self.name = name
        self.ping = ping
        self.answered = answered
        self.delta: Codec | None = None
        """The codec of a subscription that negotiated deltas; None if this kind has no deltas."""
        self.following: Codec = self
        """The codec of a subscription after its first batch."""
        self._say = say
        self._wrap = wrap
        self._frame = frame

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    @property
    def tags(self) -> TagsFilter | None:
        """The filter that publications must match; None for all publications."""
        return None

    @property
    def unfiltered(self) -> Codec:
        """The codec that encodes all publications as this one encodes those that it wants."""
        return self

    @property
    def framed(self) -> bool:
        """Whether chunks may be joined and split."""
        return self._frame is not None

    @property
    def pushes(self) -> bool:
        """Whether the codec can encode pushes other than publications."""
        return self._wrap is not None

    def size(self, publication: Publication) -> int:
        """At most how many bytes a publication takes, as a push or inside a reply; 0 for none.

        Nothing of the data is made to find out.
        """
        size = len(publication.data) + _AROUND + len(_encode(publication.channel))
        if publication.tags:
            size += len(_encode(publication.tags))
        if publication.info is not None:
            size += len(_encode(publication.info))
        return size

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """The chunks of these publications, in order.

        `base` is the publication that the listeners got before these.
        """
        messages = self._messages(publications, base)
        if self._frame is None or not messages:
            return messages
        if len(messages) == 1:
            return [self._frame(messages[0])]
        return [b"".join(map(self._frame, messages))]

    def _messages(
        self, publications: Sequence[Publication], _base: Publication | None
    ) -> list[bytes]:
        return [self._say(publication) for publication in publications]

    def message(self, payload: bytes) -> bytes:
        """The chunk that carries one ready-made message."""
        return payload if self._frame is None else self._frame(payload)

    def push(self, push: Push) -> bytes:
        """The chunk that carries one push; empty for a client that gets publications only."""
        return b"" if self._wrap is None else self.message(self._wrap(encode_push(push)))

    def farewell(self, disconnect: Disconnect) -> bytes:
        """The last chunk of a stream that has no close frame to say why it ends (section 8.2)."""
        return self.push(Push(disconnect=disconnect))

    def announcement(self, announcement: Announcement) -> bytes:
        """The chunk that says which client joined or left."""
        info = {"info": announcement.info}
        if announcement.joined:
            return self.push(Push(announcement.channel, join=info))
        return self.push(Push(announcement.channel, leave=info))

    def filtered(self, tags: TagsFilter) -> Codec:
        """The codec of subscriptions that get only the publications that match this filter."""
        return FilteredCodec(self, tags)


class FilteredCodec(Codec):
    """Another codec, for the publications whose tags match a filter.

    Two filtered codecs are equal if their codec is the same and their filters are equal. So the
    subscriptions with equal filters form one group.
    """

    __slots__ = ("_codec", "_matches", "_tags")

    def __init__(self, codec: Codec, tags: TagsFilter) -> None:
        super().__init__(
            f"{codec.name} filtered",
            say=codec._say,
            wrap=codec._wrap,
            frame=codec._frame,
            ping=codec.ping,
        )
        self._codec = codec
        self._tags = tags
        self._matches = compile_filter(tags)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FilteredCodec):
            return NotImplemented
        return self._codec is other._codec and self._tags == other._tags

    def __hash__(self) -> int:
        return hash((id(self._codec), self._tags))

    @property
    def tags(self) -> TagsFilter | None:
        """The filter that publications must match."""
        return self._tags

    @property
    def unfiltered(self) -> Codec:
        """The codec without the filter."""
        return self._codec

    def size(self, publication: Publication) -> int:
        """As `Codec.size`; 0 for a publication that the filter leaves out."""
        return self._codec.size(publication) if self._matches(publication.tags or {}) else 0

    def _messages(
        self, publications: Sequence[Publication], base: Publication | None
    ) -> list[bytes]:
        return [
            self._say(publication)
            for publication in publications
            if self._matches(publication.tags or {})
        ]


class DeltaCodec(Codec):
    """Centrifugo pushes whose data is a JSON string: the full text, or the delta to the last one.

    The first publication after subscribing is always the full text (section 10).
    """

    __slots__ = ("_rely",)

    def __init__(
        self, name: str, *, wrap: Wrap, frame: Frame | None, ping: bytes | None, rely: bool
    ) -> None:
        """As `Codec`; `rely` says that the listeners have the base of the first delta."""
        super().__init__(name, say=lambda p: wrap(say_whole(p)), wrap=wrap, frame=frame, ping=ping)
        self._rely = rely

    @classmethod
    def of(cls, codec: Codec, wrap: Wrap) -> Self:
        """The delta codec that belongs to `codec`; listeners get its `following` after a batch."""
        frame, ping = codec._frame, codec.ping
        first = cls(f"{codec.name} delta first", wrap=wrap, frame=frame, ping=ping, rely=False)
        first.following = cls(f"{codec.name} delta", wrap=wrap, frame=frame, ping=ping, rely=True)
        return first

    def size(self, publication: Publication) -> int:
        """As `Codec.size`, with the data as a string, in which these bytes are escaped."""
        data = publication.data
        escapes = data.count(b'"') + data.count(b"\\") + data.count(b"\t")
        return super().size(publication) + escapes

    def _messages(
        self, publications: Sequence[Publication], base: Publication | None
    ) -> list[bytes]:
        assert self._wrap is not None
        messages, last = [], base if self._rely else None
        for publication in publications:
            messages.append(self._wrap(say_delta(publication, last)))
            last = publication
        return messages


def say_data(publication: Publication) -> bytes:
    """The data alone, for a plain subscriber."""
    return publication.data


def say_bare(publication: Publication) -> bytes:
    """The push object of a publication (protocol, section 5)."""
    return _push_object(publication, publication.data)


def say_push(publication: Publication) -> bytes:
    """The push object inside its envelope."""
    return enveloped(say_bare(publication))


def say_whole(publication: Publication) -> bytes:
    """The push object of a full publication for a subscriber with deltas: JSON text in a string."""
    return _push_object(publication, _encode(publication.data.decode()))


def say_delta(publication: Publication, base: Publication | None) -> bytes:
    """The push object with the delta to `base`, if the publisher allows it and it is shorter."""
    if base is None or not publication.delta:
        return say_whole(publication)
    text, is_delta = delta_or_full(base.data, publication.data)
    return _push_object(publication, _encode(text.decode()), b',"delta":true' if is_delta else b"")


def _push_object(publication: Publication, data: bytes, more: bytes = b"") -> bytes:
    """Write a push object. A client without an epoch learns it here, with offset 1 only."""
    parts = [b'{"channel":', _encode(publication.channel), b',"pub":{"data":', data, more]
    if publication.offset:
        parts.append(b',"offset":%d' % publication.offset)
        if publication.offset == 1:
            parts += (b',"epoch":', _encode(publication.epoch))
    if publication.tags:
        parts += (b',"tags":', _encode(publication.tags))
    if publication.info is not None:
        parts += (b',"info":', _encode(publication.info))
    parts.append(b"}}")
    return b"".join(parts)


def line(message: bytes) -> bytes:
    """A message as one line of an HTTP stream; a message has no line breaks (section 14.1)."""
    return message + b"\n"


def event(message: bytes) -> bytes:
    """A message of one line as a Server-Sent Event."""
    return b"data: " + message + b"\n\n"


def _centrifuge(name: str, *, frame: Frame | None, ping: bytes) -> Codec:
    codec = Codec(name, say=say_push, wrap=enveloped, frame=frame, ping=ping)
    codec.delta = DeltaCodec.of(codec, enveloped)
    return codec


PLAIN: Final = Codec("plain", say=say_data, wrap=None, frame=text_frame, ping=PING_FRAME)
CENTRIFUGE_JSON: Final = _centrifuge("centrifuge-json", frame=text_frame, ping=text_frame(b"{}"))
# Clients do not answer a unidirectional ping. So a WebSocket ping goes with it: every peer answers
# that one.
CENTRIFUGE_UNI: Final = Codec(
    "centrifuge-uni",
    say=say_bare,
    wrap=bare,
    frame=text_frame,
    ping=text_frame(b"{}") + PING_FRAME,
)
# An ASGI server frames by itself and offers no ping. So it must find out itself that a plain or
# unidirectional client has vanished; the server's own hand-over to Hypercorn does.
PLAIN_ASGI: Final = Codec("plain-asgi", say=say_data, wrap=None, frame=None, ping=None)
CENTRIFUGE_JSON_ASGI: Final = _centrifuge("centrifuge-json-asgi", frame=None, ping=b"{}")
CENTRIFUGE_UNI_ASGI: Final = Codec(
    "centrifuge-uni-asgi", say=say_bare, wrap=bare, frame=None, ping=b"{}", answered=False
)

# The chunks of a response body may be joined and split, so these serve behind ASGI servers, too.
CENTRIFUGE_SSE: Final = _centrifuge("centrifuge-sse", frame=event, ping=event(b"{}"))
CENTRIFUGE_STREAM: Final = _centrifuge("centrifuge-stream", frame=line, ping=line(b"{}"))
CENTRIFUGE_UNI_SSE: Final = Codec(
    "centrifuge-uni-sse", say=say_bare, wrap=bare, frame=event, ping=event(b"{}"), answered=False
)
CENTRIFUGE_UNI_STREAM: Final = Codec(
    "centrifuge-uni-stream", say=say_bare, wrap=bare, frame=line, ping=line(b"{}"), answered=False
)
