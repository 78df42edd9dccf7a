"""Writes what a Protobuf client is told: the values of `replies` become messages of client.proto.

Rule: a message says the same as the JSON text of the same value. A field that is set to its zero
value takes no byte, so nothing asks whether it is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from repeater.errors import Disconnect, Unsubscribed
from repeater.protocol.centrifugo.protobuf_messages import REPLY
from repeater.protocol.centrifugo.replies import (
    ConnectResult,
    Empty,
    Failure,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    PublicationResult,
    Push,
    RefreshResult,
    Reply,
    RPCResult,
    SubscribeResult,
)
from repeater.publication import ClientInfo, Publication


def write_reply(reply: Reply) -> bytes:
    """A reply, without its length."""
    message = REPLY()
    message.id = reply.id
    _write_first(message, reply, _RESULTS)
    return _bytes(message)


def write_push(push: Push) -> bytes:
    """A push inside a reply without id, without its length."""
    message = REPLY()
    inner = message.push
    inner.channel = push.channel
    _write_first(inner, push, _PUSHES)
    return _bytes(message)


def write_publication(publication: Publication, data: bytes, *, delta: bool = False) -> bytes:
    """The push of a publication with this data, the whole or a delta; without its length.

    A client without an epoch learns it here, with offset 1 only.
    """
    message = REPLY()
    push = message.push
    push.channel = publication.channel
    pub = push.pub
    pub.data = data
    if delta:
        pub.delta = True
    if publication.offset:
        pub.offset = publication.offset
        if publication.offset == 1:
            pub.epoch = publication.epoch
    if publication.tags:
        pub.tags.update(publication.tags)
    if publication.info is not None:
        _write_info(pub.info, publication.info)
    return _bytes(message)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _write_first(message: Any, value: Any, fields: dict[str, Callable[[Any, Any], None]]) -> None:
    """Write the one field that a reply or push has. It is there even if nothing is in it."""
    for name, write in fields.items():
        field = getattr(value, name)
        if field is not None:
            inner = getattr(message, name)
            inner.SetInParent()
            write(inner, field)
            return


def _write_failure(message: Any, failure: Failure) -> None:
    message.code = failure.code
    message.message = failure.message
    message.temporary = failure.temporary


def _write_connect(message: Any, result: ConnectResult) -> None:
    message.client = result.client
    message.version = result.version
    _write_expiry(message, result)
    _write_data(message, result.data)
    for channel, one in (result.subs or {}).items():
        _write_subscribe(message.subs[channel], one)
    message.ping = result.ping
    message.pong = result.pong
    message.session = result.session
    message.node = result.node


def _write_subscribe(message: Any, result: SubscribeResult) -> None:
    _write_expiry(message, result)
    _write_position(message, result)
    _write_publications(message.publications, result.publications or ())
    message.recovered = result.recovered
    message.was_recovering = result.was_recovering
    message.delta = result.delta


def _write_position(message: Any, result: SubscribeResult) -> None:
    """What a client is told of a server-side subscription that begins later, too."""
    message.recoverable = result.recoverable
    message.epoch = result.epoch
    message.offset = result.offset
    message.positioned = result.positioned
    _write_data(message, result.data)


def _write_publications(messages: Any, publications: Iterable[PublicationResult]) -> None:
    for one in publications:
        message = messages.add()
        message.data = bytes(one.data)
        message.offset = one.offset
        if one.tags:
            message.tags.update(one.tags)
        if one.info is not None:
            _write_info(message.info, one.info)


def _write_info(message: Any, info: ClientInfo) -> None:
    message.user = info.user
    message.client = info.client
    if info.conn_info is not None:
        message.conn_info = bytes(info.conn_info)
    if info.chan_info is not None:
        message.chan_info = bytes(info.chan_info)


def _write_expiry(message: Any, result: ConnectResult | SubscribeResult | RefreshResult) -> None:
    message.expires = result.expires
    message.ttl = result.ttl


def _write_data(message: Any, data: msgspec.Raw | None) -> None:
    if data is not None:
        message.data = bytes(data)


def _write_presence(message: Any, result: PresenceResult) -> None:
    for client, info in result.presence.items():
        _write_info(message.presence[client], info)


def _write_stats(message: Any, result: PresenceStatsResult) -> None:
    message.num_clients = result.num_clients
    message.num_users = result.num_users


def _write_history(message: Any, result: HistoryResult) -> None:
    _write_publications(message.publications, result.publications)
    message.epoch = result.epoch
    message.offset = result.offset


def _write_rpc(message: Any, result: RPCResult) -> None:
    _write_data(message, result.data)


def _write_nothing(_message: Any, _result: Empty) -> None:
    """An empty result has no fields."""


def _write_reason(message: Any, why: Disconnect | Unsubscribed) -> None:
    message.code = why.code
    message.reason = why.reason


def _write_announcement(message: Any, announcement: dict[str, ClientInfo]) -> None:
    _write_info(message.info, announcement["info"])


def _write_message(message: Any, sent: dict[str, msgspec.Raw]) -> None:
    _write_data(message, sent["data"])


_RESULTS: Final[dict[str, Callable[[Any, Any], None]]] = {
    "error": _write_failure,
    "subscribe": _write_subscribe,
    "publish": _write_nothing,
    "connect": _write_connect,
    "unsubscribe": _write_nothing,
    "presence": _write_presence,
    "presence_stats": _write_stats,
    "history": _write_history,
    "rpc": _write_rpc,
    "refresh": _write_expiry,
    "sub_refresh": _write_expiry,
}
"""What a reply may be, the frequent ones first."""

_PUSHES: Final[dict[str, Callable[[Any, Any], None]]] = {
    "join": _write_announcement,
    "leave": _write_announcement,
    "unsubscribe": _write_reason,
    "subscribe": _write_position,
    "message": _write_message,
    "disconnect": _write_reason,
    "refresh": _write_expiry,
}
"""What a push may be, besides a publication. `connect` is for unidirectional clients: JSON only."""
