"""The commands of a Centrifugo client: JSON objects, one per line (protocol, sections 2 to 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Generic, TypeVar

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import BAD_REQUEST, DisconnectError
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.json_faults import JSONFault, fault_of
from repeater.protocol.json_reader import STRANGERS_VALUES, reader

Message = TypeVar("Message", str, bytes)

_UINT32: Final = 2**32 - 1


class SincePosition(msgspec.Struct, frozen=True):
    """A position that a client names; zero values may be left out."""

    offset: int = 0
    epoch: str = ""


class SubscriptionPosition(msgspec.Struct, frozen=True):
    """Where a server-side subscription stood before the connection was lost."""

    recover: bool = False
    offset: int = 0
    epoch: str = ""


class ConnectRequest(msgspec.Struct, frozen=True):
    """The first command of a connection. Other fields are ignored, as the protocol asks."""

    token: str = ""
    data: msgspec.Raw = msgspec.Raw()
    subs: Mapping[str, SubscriptionPosition] = {}
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    """Headers that a browser cannot send over HTTP; the back end gets the forwardable ones."""


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Listen to a channel (section 4.1)."""

    channel: str = ""
    token: str = ""
    data: msgspec.Raw = msgspec.Raw()
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    recover: bool = False
    offset: int = 0
    epoch: str = ""
    delta: str = ""
    tf: TagsFilter | None = None
    flag: int = 0
    type: int = 0


class UnsubscribeRequest(msgspec.Struct, frozen=True):
    """Stop listening to a channel."""

    channel: str = ""


class PublishRequest(msgspec.Struct, frozen=True):
    """Publish into a channel; empty data counts as missing. `type` belongs to map channels."""

    channel: str = ""
    data: msgspec.Raw = msgspec.Raw()
    type: int = 0


class ChannelRequest(msgspec.Struct, frozen=True):
    """`presence` and `presence_stats`: ask who is in a channel."""

    channel: str = ""


class HistoryRequest(msgspec.Struct, frozen=True):
    """Ask for past publications (section 4.6); a negative limit asks for the allowed maximum."""

    channel: str = ""
    limit: int = 0
    since: SincePosition | None = None
    reverse: bool = False


class RPCRequest(msgspec.Struct, frozen=True):
    """Call a method of the back end."""

    method: str = ""
    data: msgspec.Raw = msgspec.Raw()


class SendRequest(msgspec.Struct, frozen=True):
    """A message without a reply."""

    data: msgspec.Raw = msgspec.Raw()


class RefreshRequest(msgspec.Struct, frozen=True):
    """A new token for the connection."""

    token: str = ""


class SubRefreshRequest(msgspec.Struct, frozen=True):
    """A new token for a subscription."""

    channel: str = ""
    token: str = ""


class Command(msgspec.Struct, frozen=True):
    """One command: an id and exactly one method. One with neither is a pong."""

    id: int = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    rpc: RPCRequest | None = None
    send: SendRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None

    @property
    def valid_id(self) -> bool:
        """Whether the command may get a reply: valid ids are positive uint32 numbers."""
        return 0 < self.id <= _UINT32

    @property
    def subject(self) -> tuple[str, str]:
        """The method's name, and the channel that it is about, for the log; each may be empty."""
        for name in self.__struct_fields__[1:]:
            request = getattr(self, name)
            if request is not None:
                return name, getattr(request, "channel", "")
        return "", ""


class BadCommand(Command, frozen=True):
    """A command with an id whose other fields have a wrong type: it is answered with an error."""

    fault: JSONFault | None = None

    @property
    def subject(self) -> tuple[str, str]:
        """As of any command; the channel is not known."""
        return (self.fault.place.partition(".")[0] if self.fault else ""), ""


class _Identified(msgspec.Struct, frozen=True):
    """The only field of a bad command that is read."""

    id: int = 0


class EmulationRequest(msgspec.Struct, Generic[Message], frozen=True):
    """The body of `POST /emulation` (section 14.2): commands for a session of a node.

    `data` is what a WebSocket's message would be: text, or bytes in Protobuf.
    """

    data: Message
    session: str = ""
    node: str = ""


PONG: Final = Command()
NOT_TEXT: Final = Why(
    Cause.REQUEST,
    "the message is binary, and this connection speaks JSON",
    "ask for the subprotocol centrifuge-protobuf to speak Protobuf",
)
_decode = reader(Command, around=2, values=STRANGERS_VALUES)
_decode_id = reader(_Identified, around=2, values=STRANGERS_VALUES)
_decode_connect = reader(ConnectRequest, around=1, values=STRANGERS_VALUES)


def parse_commands(message: str | bytes) -> Iterator[Command]:
    """The commands of one message, lazily: commands before an invalid one still take effect.

    A command without id and method is `PONG`, in whatever spelling. A command with fields of a
    wrong type is a `BadCommand`.

    Raises:
        DisconnectError: 3501 for an empty line or a line that is not a JSON object, or whose id
            is not a number (protocol, section 2.2); also for bytes, which are not text.
    """
    if isinstance(message, bytes):
        raise DisconnectError(BAD_REQUEST, NOT_TEXT)
    if message.endswith("\n"):
        message = message[:-1]
    for line in message.split("\n"):
        if line == "{}":
            yield PONG
            continue
        try:
            command = _decode(line)
        except msgspec.ValidationError as error:
            yield _bad_command(line, error)
        except msgspec.DecodeError as error:
            raise _not_a_command(error) from None
        else:
            yield PONG if command == PONG else command


def parse_connect(message: str) -> ConnectRequest:
    """The bare first message of a unidirectional client; `null` counts as `{}` (section 15).

    Raises:
        DisconnectError: 3501 for anything else.
    """
    try:
        return ConnectRequest() if message.strip() == "null" else _decode_connect(message)
    except msgspec.DecodeError as error:
        raise _not_a_command(error) from None


def _bad_command(line: str, error: msgspec.ValidationError) -> BadCommand:
    try:
        return BadCommand(_decode_id(line).id, fault=fault_of(error))
    except msgspec.DecodeError as worse:
        raise _not_a_command(worse) from None


def _not_a_command(error: msgspec.DecodeError) -> DisconnectError:
    why = Why(Cause.REQUEST, f"the message: {fault_of(error)}", "send one JSON object a line")
    return DisconnectError(BAD_REQUEST, why)
