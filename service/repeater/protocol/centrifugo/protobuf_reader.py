"""Reads what a Protobuf client says: messages of client.proto become the values of `commands`.

Rule: a value says the same as the one that is read from JSON. So a field that is missing has its
zero value, an unknown field is ignored, and data is bytes that nobody has looked at. A field of
another wire type than the schema's is an unknown field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

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
from repeater.protocol.centrifugo.protobuf_messages import COMMAND, EMULATION_REQUEST, DecodeError

_LENGTH_BYTES: Final = 5  # of a uint32 as a varint


def read_commands(message: bytes) -> Iterator[Command]:
    """The commands of one message, lazily: commands before an invalid one still take effect.

    Each command has its length before it. A command without id and method is `PONG`.

    Raises:
        DisconnectError: 3501 for an empty message, or one that is cut off or invalid.
    """
    start, end = 0, len(message)
    if not end:
        raise DisconnectError(BAD_REQUEST)
    while start < end:
        size, start = _read_length(message, start)
        if start + size > end:
            raise DisconnectError(BAD_REQUEST)
        yield _read_command(message[start : start + size]) if size else PONG
        start += size


def read_emulation(body: bytes) -> EmulationRequest[bytes]:
    """The request in a body; what it does not have is empty.

    Raises:
        DisconnectError: 3501 for a body that is something else.
    """
    try:
        message = EMULATION_REQUEST.FromString(body)
    except DecodeError:
        raise DisconnectError(BAD_REQUEST) from None
    return EmulationRequest(message.data, message.session, message.node)


def _read_length(message: bytes, start: int) -> tuple[int, int]:
    """An unsigned varint, seven bits a byte from the lowest on, and where the next byte is."""
    size = message[start]
    if size < 0x80:  # nearly every command
        return size, start + 1
    size &= 0x7F
    for place, byte in enumerate(message[start + 1 : start + _LENGTH_BYTES], 1):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return size, start + 1 + place
    raise DisconnectError(BAD_REQUEST)


def _read_command(data: bytes) -> Command:
    try:
        message = COMMAND.FromString(data)
    except DecodeError:
        raise DisconnectError(BAD_REQUEST) from None
    number, has = message.id, message.HasField
    for method, read in _METHODS.items():
        if has(method):
            return Command(number, **{method: read(getattr(message, method))})
    return Command(number) if number else PONG


def _read_connect(message: Any) -> ConnectRequest:
    return ConnectRequest(
        token=message.token,
        data=msgspec.Raw(message.data),
        subs=_Positions(message.subs) if message.subs else {},
        name=message.name,
        version=message.version,
        headers=dict(message.headers),
    )


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


def _read_subscribe(message: Any) -> SubscribeRequest:
    return SubscribeRequest(
        channel=message.channel,
        token=message.token,
        data=msgspec.Raw(message.data),
        positioned=message.positioned,
        recoverable=message.recoverable,
        join_leave=message.join_leave,
        recover=message.recover,
        offset=message.offset,
        epoch=message.epoch,
        delta=message.delta,
        tf=_FilterReader().read(message.tf) if message.HasField("tf") else None,
        flag=message.flag,
        type=message.type,
    )


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


def _read_unsubscribe(message: Any) -> UnsubscribeRequest:
    return UnsubscribeRequest(message.channel)


def _read_publish(message: Any) -> PublishRequest:
    return PublishRequest(message.channel, msgspec.Raw(message.data), message.type)


def _read_channel(message: Any) -> ChannelRequest:
    return ChannelRequest(message.channel)


def _read_history(message: Any) -> HistoryRequest:
    since = None
    if message.HasField("since"):
        since = SincePosition(message.since.offset, message.since.epoch)
    return HistoryRequest(message.channel, message.limit, since, message.reverse)


def _read_rpc(message: Any) -> RPCRequest:
    return RPCRequest(message.method, msgspec.Raw(message.data))


def _read_send(message: Any) -> SendRequest:
    return SendRequest(msgspec.Raw(message.data))


def _read_refresh(message: Any) -> RefreshRequest:
    return RefreshRequest(message.token)


def _read_sub_refresh(message: Any) -> SubRefreshRequest:
    return SubRefreshRequest(message.channel, message.token)


_METHODS: Final[dict[str, Callable[[Any], Any]]] = {
    "connect": _read_connect,
    "subscribe": _read_subscribe,
    "unsubscribe": _read_unsubscribe,
    "publish": _read_publish,
    "presence": _read_channel,
    "presence_stats": _read_channel,
    "history": _read_history,
    "rpc": _read_rpc,
    "send": _read_send,
    "refresh": _read_refresh,
    "sub_refresh": _read_sub_refresh,
}
"""The methods in the protocol's order: the first one that a command has counts (section 2.5)."""
