"""What a Centrifugo client sends: JSON commands, one a line (protocol, sections 2 to 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from service.errors import BAD_REQUEST, DisconnectError


class ConnectRequest(msgspec.Struct, frozen=True):
    """The first command of a connection. Other fields are ignored, as the protocol asks."""

    token: str = ""
    name: str = ""
    version: str = ""


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Listen to a channel."""

    channel: str = ""


class UnsubscribeRequest(msgspec.Struct, frozen=True):
    """Stop listening to a channel."""

    channel: str = ""


class PublishRequest(msgspec.Struct, frozen=True):
    """Publish into a channel; empty data is data left out."""

    channel: str = ""
    data: msgspec.Raw = msgspec.Raw()


class Command(msgspec.Struct, frozen=True):
    """One command: an id and exactly one method. A bare `{}` is a pong.

    Methods of features that this server does not have take anything: they are answered with
    an error, not with a disconnect.
    """

    id: int = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    send: Any = None
    presence: Any = None
    presence_stats: Any = None
    history: Any = None
    rpc: Any = None

    @property
    def unavailable(self) -> bool:
        """Whether it asks for a known feature that is switched off here (error 108)."""
        return any(
            request is not None
            for request in (self.presence, self.presence_stats, self.history, self.rpc)
        )


PONG: Final = Command()
_decode = msgspec.json.Decoder(Command).decode


def parse_commands(message: bytes) -> Iterator[Command]:
    """The commands of one message, lazily: those before a bad one still take effect.

    Raises:
        DisconnectError: 3501 for an empty line, anything that is not a JSON object of the
            protocol, or text that is not UTF-8 (protocol, section 2.2).
    """
    if message.endswith(b"\n"):
        message = message[:-1]
    for line in message.split(b"\n"):
        if line == b"{}":
            yield PONG
            continue
        try:
            line.decode()
            command = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise DisconnectError(BAD_REQUEST) from None
        yield command
