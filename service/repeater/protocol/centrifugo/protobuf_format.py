"""The format of Protobuf clients: each message has its length before it (protocol, section 16).

So messages need nothing between them: a WebSocket frame or a chunk of a stream may have several.
Data is any bytes; a delta is the Fossil delta itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from repeater.causes import Cause, Why
from repeater.errors import BAD_REQUEST, DisconnectError
from repeater.protocol.centrifugo.commands import Command
from repeater.protocol.centrifugo.fossil import delta_or_full
from repeater.protocol.centrifugo.protobuf_reader import read_commands
from repeater.protocol.centrifugo.protobuf_writer import write_publication, write_push, write_reply
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.publication import Publication

_NOT_BINARY: Final = Why(Cause.REQUEST, "the message is text, and this connection speaks Protobuf")


class ProtobufFormat:
    """Replies, and pushes in replies without an id."""

    __slots__ = ()

    binary = True
    takes_binary = True
    pushes = True
    ping = b"\0"

    def commands(self, message: str | bytes) -> Iterator[Command]:
        """The commands of one message; raises as `read_commands`, and 3501 for text."""
        if isinstance(message, str):
            raise DisconnectError(BAD_REQUEST, _NOT_BINARY)
        return read_commands(message)

    def publication(self, publication: Publication) -> bytes:
        """The push that carries one publication."""
        return write_publication(publication, publication.data)

    def delta(self, publication: Publication, base: Publication | None) -> bytes:
        """The push with the whole data or the delta, both as they are (section 10)."""
        if base is None or not publication.delta:
            return self.publication(publication)
        data, is_delta = delta_or_full(base.data, publication.data, text=False)
        return write_publication(publication, data, delta=is_delta)

    def push(self, push: Push) -> bytes:
        """The push."""
        return write_push(push)

    def reply(self, reply: Reply) -> bytes:
        """The reply."""
        return write_reply(reply)


PROTOBUF: Final = ProtobufFormat()
