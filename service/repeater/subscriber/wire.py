"""The client's side of the Centrifugo JSON protocol: commands out, replies and pushes in.

Values and pure functions only. Unknown fields are ignored, as the protocol demands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from repeater.errors import RepeaterError
from repeater.protocol.json_reader import reader

_MESSAGE: Final = 32_768
_TOO_BIG: Final = 1009  # a message was larger than its receiver takes (RFC 6455, section 7.4.1)
_PATH: Final = "/connection/websocket"


class SubscriberError(RepeaterError):
    """The connection cannot be made, or the server ended it for good."""


class SubscriptionError(SubscriberError):
    """The server refused or ended a subscription to `channel`. `code` is one of the protocol.

    With an empty channel the server refused the connection itself, and so all subscriptions.
    """

    def __init__(self, channel: str, code: int, message: str) -> None:
        what = f"cannot subscribe to {channel}" if channel else "the server refused the connection"
        super().__init__(f"{what}: {code} {message}")
        self.channel = channel
        self.code = code


class Pub(msgspec.Struct):
    """A publication, live or recovered."""

    data: msgspec.Raw
    offset: int = 0


class Unsubscribe(msgspec.Struct):
    """The server ended a subscription. From code 2500 on, the client must subscribe again."""

    code: int = 0
    reason: str = ""


class Push(msgspec.Struct):
    """A message from the server that answers no command."""

    channel: str = ""
    pub: Pub | None = None
    unsubscribe: Unsubscribe | None = None


class Failure(msgspec.Struct):
    """The error of a command that was refused."""

    code: int
    message: str
    temporary: bool = False


class Connected(msgspec.Struct):
    """The result of `connect`. `ping` is the seconds between the server's pings."""

    ping: float = 0


class Subscribed(msgspec.Struct):
    """The result of `subscribe`."""

    recoverable: bool = False
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[Pub] = []


class Reply(msgspec.Struct):
    """One line from the server. `{}` is a ping."""

    id: int = 0
    error: Failure | None = None
    connect: Connected | None = None
    subscribe: Subscribed | None = None
    push: Push | None = None


class Position(msgspec.Struct, frozen=True):
    """The position of a subscription in its channel's stream."""

    offset: int
    epoch: str


_decode = reader(Reply, around=4)


def replies(message: str | bytes) -> list[Reply]:
    """The replies and pushes of one message."""
    text = message if isinstance(message, str) else message.decode()
    return [_decode(line) for line in text.split("\n") if line]


def connect_command(number: int, token: str) -> str:
    """The `connect` command, the first one of a connection."""
    return _command(number, connect={"token": token} if token else {})


def subscribe_command(number: int, channel: str, position: Position | None, token: str = "") -> str:
    """The `subscribe` command, with recovery if a position is given."""
    request: dict[str, object] = {"channel": channel, "recoverable": True, "positioned": True}
    if token:
        request["token"] = token
    if position is not None:
        request |= {"recover": True, "offset": position.offset, "epoch": position.epoch}
    return _command(number, subscribe=request)


def _command(number: int, **method: object) -> str:
    return msgspec.json.encode({"id": number, **method}).decode()


def messages(commands: Sequence[str]) -> Iterator[str]:
    """The messages that carry these commands, each well below what a server takes (64 KiB)."""
    message: list[str] = []
    size = 0
    for command in commands:
        length = len(command.encode())
        if message and size + length > _MESSAGE:
            yield "\n".join(message)
            message, size = [], 0
        message.append(command)
        size += length + 1
    yield "\n".join(message)


def websocket_url(url: str) -> str:
    """The Centrifugo endpoint of a server's base URL.

    Raises:
        SubscriberError: the URL is not an http, https, ws or wss URL.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise SubscriberError(f"not a server's URL: {url}")
    return f"{schemes[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}{_PATH}"


def stays_away(code: int) -> bool:
    """Whether a close code means that the client must not reconnect (section 8.2).

    After 1009 the same message would come again, and end the next connection in the same way.
    """
    return code == _TOO_BIG or 3500 <= code < 4000 or 4500 <= code < 5000
