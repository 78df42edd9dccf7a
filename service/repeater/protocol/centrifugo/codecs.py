"""Encodes publications as the bytes of a client's protocol: once per batch, not once per client.

A codec combines a message format (plain data, JSON, Protobuf) with a framing (WebSocket frames,
lines of a response, or one ASGI message each). It returns chunks: with framing a whole batch is one
chunk, which goes to each subscriber in one system call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Self

import msgspec

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.filters import TagsFilter, compile_filter
from repeater.protocol.centrifugo.format import Format
from repeater.protocol.centrifugo.json_format import BARE, BINARY_MARK, JSON, PLAIN_MESSAGES
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.protocol.websocket.deflate import DeflatedFrame
from repeater.protocol.websocket.frames import PING_FRAME, binary_frame, text_frame
from repeater.publication import Announcement, Publication

if TYPE_CHECKING:
    from repeater.options import ChannelOptions

_encode = msgspec.json.Encoder().encode

_AROUND: Final = 160
"""At most the bytes around a publication's data, channel, tags and info: names of fields, an offset
of 20 digits, an epoch of up to 32 characters, and the framing."""

_LENGTHS: Final = 12
"""At most the bytes that a tag takes in Protobuf beside those of its JSON: three lengths of up to
five bytes each and what is before them, in place of quotes, a colon and a comma."""

Frame = Callable[[bytes], bytes]
"""The framed message: the frame separates the message from the next one."""


class Codec:
    """The message format and framing of one kind of client. Stateless; all these clients share it.

    Compared by identity: listeners are grouped by codec, and each group needs one encoding only.
    """

    __slots__ = (
        *("_frame", "_reply", "_say", "answered", "compresses"),
        *("delta", "following", "format", "name", "ping", "takes_binary"),
    )

    def __init__(
        self,
        name: str,
        message_format: Format,
        *,
        frame: Frame | None,
        ping: bytes | None,
        answered: bool = True,
    ) -> None:
        """Combine a message format and a framing.

        Args:
            name: For logs and metrics.
            message_format: Reads what these clients say, and writes what they are told.
            frame: None where each chunk must be one message, because the ASGI server frames.
            ping: The chunk that asks whether the client is still there; None if the client cannot
                be asked.
            answered: Whether the client answers a ping. If not, a ping only keeps a stream from
                being idle, and TCP must find out that a client has vanished.
        """
        self.name = name
        self.format = message_format
        self.ping = ping
        self.answered = answered
        self.delta: Codec | None = None
        """The codec of a subscription that negotiated deltas; None if this kind has no deltas."""
        self.following: Codec = self
        """The codec of a subscription after its first batch."""
        self.takes_binary = message_format.takes_binary
        """Whether listeners get binary publications, too; else these are left out."""
        self.compresses = isinstance(frame, DeflatedFrame)
        """Whether messages are compressed, in both directions: it takes ten times as long."""
        self._say = message_format.publication
        self._reply = message_format.reply
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
        """Whether the codec can encode replies, and pushes other than publications."""
        return self.format.pushes

    def for_channel(self, _options: ChannelOptions) -> Codec:
        """The codec of messages that carry this channel's publications."""
        return self

    def size(self, publication: Publication) -> int:
        """At most how many bytes a publication takes, as a push or inside a reply; 0 for none.

        Nothing of the data is made to find out.
        """
        if publication.binary and not self.takes_binary:
            return 0
        size = len(publication.data) + _AROUND + len(_encode(publication.channel))
        if publication.tags:
            size += len(_encode(publication.tags)) + _LENGTHS * len(publication.tags)
        if publication.info is not None:
            size += len(_encode(publication.info))
        return size

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """The chunks of these publications, in order, without those that the codec leaves out.

        `base` is the publication that the listeners got before these.
        """
        messages = self._messages(publications, base)
        if self._frame is None or not messages:
            return messages
        if len(messages) == 1:
            return [self._frame(messages[0])]
        if isinstance(self._frame, DeflatedFrame):
            return [self._frame.join(messages)]
        return [b"".join(map(self._frame, messages))]

    def _messages(
        self, publications: Sequence[Publication], _base: Publication | None
    ) -> list[bytes]:
        say, takes_binary = self._say, self.takes_binary
        return [say(one) for one in publications if takes_binary or not one.binary]

    def message(self, payload: bytes) -> bytes:
        """The chunk that carries one ready-made message."""
        return payload if self._frame is None else self._frame(payload)

    def push(self, push: Push) -> bytes:
        """The chunk that carries one push; empty for a client that gets publications only."""
        return self.message(self.format.push(push)) if self.format.pushes else b""

    def reply(self, reply: Reply) -> bytes:
        """The chunk that carries one reply."""
        message = self._reply(reply)
        return message if self._frame is None else self._frame(message)

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
            f"{codec.name} filtered", codec.format, frame=codec._frame, ping=codec.ping
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
        matching = [one for one in publications if self._matches(one.tags or {})]
        return super()._messages(matching, base)


class DeltaCodec(Codec):
    """Pushes with the whole data or the delta to the last one, as the format writes deltas.

    The first publication after subscribing is always whole (section 10).
    """

    __slots__ = ("_rely",)

    def __init__(
        self, name: str, message_format: Format, *, frame: Frame | None, rely: bool
    ) -> None:
        """As `Codec`; `rely` says that the listeners have the base of the first delta."""
        super().__init__(name, message_format, frame=frame, ping=None)
        self._rely = rely

    @classmethod
    def of(cls, codec: Codec) -> Self:
        """The delta codec that belongs to `codec`; listeners get its `following` after a batch."""
        one, frame = codec.format, codec._frame
        first = cls(f"{codec.name} delta first", one, frame=frame, rely=False)
        first.following = cls(f"{codec.name} delta", one, frame=frame, rely=True)
        return first

    def size(self, publication: Publication) -> int:
        """As `Codec.size`; in text the data is a string, in which these bytes are escaped."""
        size = super().size(publication)
        if self.format.binary or not size:
            return size
        data = publication.data
        return size + data.count(b'"') + data.count(b"\\") + data.count(b"\t")

    def _messages(
        self, publications: Sequence[Publication], base: Publication | None
    ) -> list[bytes]:
        messages, last, takes_binary = [], base if self._rely else None, self.takes_binary
        if last is not None and last.binary and not takes_binary:
            last = None  # It was left out, and what came before it is not known here.
        for publication in publications:
            if takes_binary or not publication.binary:
                messages.append(self.format.delta(publication, last))
                last = publication
        return messages


def line(message: bytes) -> bytes:
    """A message as one line of an HTTP stream; a message has no line breaks (section 14.1)."""
    return message + b"\n"


def event(message: bytes) -> bytes:
    """A message of one line as a Server-Sent Event."""
    return b"data: " + message + b"\n\n"


def plain_frame(message: bytes) -> bytes:
    """A message of a plain subscriber as one frame: text, or binary if it is marked."""
    if message.startswith(BINARY_MARK):
        return binary_frame(message[1:])
    return text_frame(message)


def bidirectional(name: str, message_format: Format, frame: Frame | None) -> Codec:
    """The codec of a client that sends commands, with the codecs of its delta subscriptions."""
    ping = message_format.ping if frame is None else frame(message_format.ping)
    codec = Codec(name, message_format, frame=frame, ping=ping)
    codec.delta = DeltaCodec.of(codec)
    return codec


PLAIN: Final = Codec("plain", PLAIN_MESSAGES, frame=plain_frame, ping=PING_FRAME)
CENTRIFUGE_JSON: Final = bidirectional("centrifuge-json", JSON, text_frame)
# Clients do not answer a unidirectional ping. So a WebSocket ping goes with it: every peer answers
# that one.
CENTRIFUGE_UNI: Final = Codec(
    "centrifuge-uni", BARE, frame=text_frame, ping=text_frame(b"{}") + PING_FRAME
)
# An ASGI server frames by itself and offers no ping. So it must find out itself that a plain or
# unidirectional client has vanished; the server's own hand-over to Hypercorn does.
PLAIN_ASGI: Final = Codec("plain-asgi", PLAIN_MESSAGES, frame=None, ping=None)
CENTRIFUGE_JSON_ASGI: Final = bidirectional("centrifuge-json-asgi", JSON, None)
CENTRIFUGE_UNI_ASGI: Final = Codec(
    "centrifuge-uni-asgi", BARE, frame=None, ping=b"{}", answered=False
)

# The chunks of a response body may be joined and split, so these serve behind ASGI servers, too.
CENTRIFUGE_SSE: Final = bidirectional("centrifuge-sse", JSON, event)
CENTRIFUGE_STREAM: Final = bidirectional("centrifuge-stream", JSON, line)
CENTRIFUGE_UNI_SSE: Final = Codec(
    "centrifuge-uni-sse", BARE, frame=event, ping=event(b"{}"), answered=False
)
CENTRIFUGE_UNI_STREAM: Final = Codec(
    "centrifuge-uni-stream", BARE, frame=line, ping=line(b"{}"), answered=False
)
