"""Reads what a Protobuf client says: messages of client.proto become the values of `commands`.

Rule: a value says the same as the one that is read from JSON. So a field that is missing has its
zero value, an unknown field is ignored, and data is bytes that nobody has looked at. A field of
another wire type than the schema's is an unknown field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import BAD_REQUEST, DisconnectError
from repeater.protocol.centrifugo.commands import (
    PONG,
    ChannelRequest,
    Command,
    ConnectRequest,
    EmulationRequest,
    HistoryRequest,
    PublishRequest,
    RefreshRequest,
    RPCRequest,
    SendRequest,
    SincePosition,
    SubRefreshRequest,
    SubscribeRequest,
    SubscriptionPosition,
    UnsubscribeRequest,
)
from repeater.protocol.centrifugo.filters import NODE_LIMIT, TagsFilter
from repeater.protocol.centrifugo.protobuf_messages import UNREADABLE, message_class
from repeater.protocol.centrifugo.varint import read_varint

_NOT_PROTOBUF: Final = Why(
    Cause.REQUEST, "the message is not commands in Protobuf, each behind its length"
)
_parse_command: Final = message_class("Command").FromString
_parse_emulation: Final = message_class("EmulationRequest").FromString


def read_commands(message: bytes) -> Iterator[Command]:
    """The commands of one message, lazily: commands before an invalid one still take effect.

    Each command has its length before it. A command without id and method is `PONG`.

    Raises:
        DisconnectError: 3501 for an empty message, or one that is cut off or invalid.
    """
    start, end = 0, len(message)
    if not end:
        raise DisconnectError(BAD_REQUEST, _NOT_PROTOBUF)
    while start < end:
        size = message[start]
        if size < 0x80:  # as nearly every command's
            start += 1
        else:
            try:
                size, start = read_varint(message, start)
            except ValueError:
                raise DisconnectError(BAD_REQUEST, _NOT_PROTOBUF) from None
        stop = start + size
        if stop > end:
            raise DisconnectError(BAD_REQUEST, _NOT_PROTOBUF)
        yield _read_command(message[start:stop]) if size else PONG
        start = stop


def read_emulation(body: bytes) -> EmulationRequest[bytes]:
    """The request in a body; what it does not have is empty.

    Raises:
        DisconnectError: 3501 for a body that is something else.
    """
    try:
        message = _parse_emulation(body)
    except UNREADABLE:
        raise DisconnectError(BAD_REQUEST, _NOT_PROTOBUF) from None
    return EmulationRequest(message.data, message.session, message.node)


def _read_command(data: bytes) -> Command:
    """One command. Of several methods, which no SDK writes, the last one counts."""
    try:
        message = _parse_command(data)
    except UNREADABLE:
        raise DisconnectError(BAD_REQUEST, _NOT_PROTOBUF) from None
    name = message.WhichOneof("method")
    if name is not None:
        return _METHODS[name](message.id, getattr(message, name))
    return Command(message.id) if message.id else PONG


class _Positions(Mapping[str, SubscriptionPosition]):
    """The positions of a `connect`, each read when it is asked for.

    A message has room for thousands, and most are of no use: reading all would take milliseconds.
    """

    __slots__ = ("_messages",)

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    def __getitem__(self, channel: str) -> SubscriptionPosition:
        if channel not in self._messages:  # else the runtime would add it
            raise KeyError(channel)
        one = self._messages[channel]
        return SubscriptionPosition(one.recover, one.offset, one.epoch)

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


class _FilterReader:
    """Reads the nodes of one filter, and at most one more than a filter may have.

    So a filter that is too large stays too large, and `check_filter` refuses it; but nobody reads
    the thousands of nodes that fit into a message.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = NODE_LIMIT + 1

    def read(self, message: Any) -> TagsFilter:
        """A node with those below it. At most as deep as the runtime reads: 100 levels."""
        self._left -= 1
        nodes = []
        for one in message.nodes:
            if not self._left:
                break
            nodes.append(self.read(one))
        vals = tuple(message.vals)
        return TagsFilter(message.op, message.key, message.cmp, message.val, vals, tuple(nodes))


def _read_connect(number: int, message: Any) -> Command:
    request = ConnectRequest(
        token=message.token,
        data=msgspec.Raw(message.data),
        subs=_Positions(message.subs) if message.subs else {},
        name=message.name,
        version=message.version,
        headers=dict(message.headers),
    )
    return Command(number, connect=request)


def _read_subscribe(number: int, message: Any) -> Command:
    channel, token, data, positioned, recoverable, join_leave = _WISHES(message)
    recover, offset, epoch, delta, flag, kind = _DETAILS(message)
    request = SubscribeRequest(
        channel,
        token,
        msgspec.Raw(data) if data else _NO_DATA,
        positioned,
        recoverable,
        join_leave,
        recover,
        offset,
        epoch,
        delta,
        _FilterReader().read(message.tf) if message.HasField("tf") else None,
        flag,
        kind,
    )
    return Command(number, subscribe=request)


def _read_unsubscribe(number: int, message: Any) -> Command:
    return Command(number, unsubscribe=UnsubscribeRequest(message.channel))


def _read_publish(number: int, message: Any) -> Command:
    channel, data, kind = _PUBLISH(message)
    return Command(number, publish=PublishRequest(channel, msgspec.Raw(data), kind))


def _read_presence(number: int, message: Any) -> Command:
    return Command(number, presence=ChannelRequest(message.channel))


def _read_presence_stats(number: int, message: Any) -> Command:
    return Command(number, presence_stats=ChannelRequest(message.channel))


def _read_history(number: int, message: Any) -> Command:
    since = None
    if message.HasField("since"):
        since = SincePosition(message.since.offset, message.since.epoch)
    request = HistoryRequest(message.channel, message.limit, since, message.reverse)
    return Command(number, history=request)


def _read_rpc(number: int, message: Any) -> Command:
    return Command(number, rpc=RPCRequest(message.method, msgspec.Raw(message.data)))


def _read_send(number: int, message: Any) -> Command:
    return Command(number, send=SendRequest(msgspec.Raw(message.data)))


def _read_refresh(number: int, message: Any) -> Command:
    return Command(number, refresh=RefreshRequest(message.token))


def _read_sub_refresh(number: int, message: Any) -> Command:
    return Command(number, sub_refresh=SubRefreshRequest(message.channel, message.token))


# The fields of a publish, and those of a subscribe but `tf`: read in one call or two, because these
# commands are frequent.
_PUBLISH: Final = attrgetter("channel", "data", "type")
_WISHES: Final = attrgetter(
    *("channel", "token", "data", "positioned", "recoverable", "join_leave")
)
_DETAILS: Final = attrgetter(*("recover", "offset", "epoch", "delta", "flag", "type"))
_NO_DATA: Final = msgspec.Raw()

_METHODS: Final[dict[str, Callable[[int, Any], Command]]] = {
    "connect": _read_connect,
    "subscribe": _read_subscribe,
    "unsubscribe": _read_unsubscribe,
    "publish": _read_publish,
    "presence": _read_presence,
    "presence_stats": _read_presence_stats,
    "history": _read_history,
    "rpc": _read_rpc,
    "send": _read_send,
    "refresh": _read_refresh,
    "sub_refresh": _read_sub_refresh,
}
"""What reads each method of a command."""
