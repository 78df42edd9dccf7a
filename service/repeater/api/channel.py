"""`presence`, `presence_stats`, `history` and `history_remove`: calls about one channel."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.clients.commands.history import read as read_history
from repeater.clients.commands.presence import read as read_presence
from repeater.protocol.centrifugo.codecs import PLAIN
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.centrifugo.replies import Empty, PresenceResult, PresenceStatsResult
from repeater.publication import ClientInfo, Publication

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

_EMPTY: Final = Empty()

_PRESENCE_LIMIT: Final = 8_388_608
"""Bytes of an answer with members, some 55,000: encoding them takes about 15 ms."""


class KeptPublication(msgspec.Struct, frozen=True, omit_defaults=True):
    """A publication in a history. A binary one has `b64data`, its bytes as Base64, not `data`."""

    data: msgspec.Raw | None = None
    b64data: str | None = None
    offset: int = 0
    tags: dict[str, str] | None = None
    info: ClientInfo | None = None


class HistoryAnswer(msgspec.Struct, frozen=True):
    """The publications, and the stream's top."""

    publications: list[KeptPublication]
    epoch: str
    offset: int


class ChannelBody(msgspec.Struct, frozen=True):
    """The body of a call that takes only a channel."""

    channel: str = ""


async def presence(node: Node, body: ChannelBody, _budget: Budget) -> PresenceResult:
    """Return the members of a channel.

    Raises:
        ReplyError: the channel is missing or its name is wrong (107), its namespace is unknown
            (102), it does not keep presence (108), or its members take more than 8 MiB (106).
        BrokerError: the store failed.
    """
    return await read_presence(node, body.channel, _PRESENCE_LIMIT)


async def presence_stats(node: Node, body: ChannelBody, _budget: Budget) -> PresenceStatsResult:
    """Return the numbers of connections and of users in a channel.

    Raises:
        ReplyError, BrokerError: as `presence`.
    """
    return PresenceStatsResult(*await node.presence_stats(body.channel))


async def history(node: Node, body: HistoryRequest, _budget: Budget) -> HistoryAnswer:
    """Return past publications, at most `limit`, as many as fit into half an outbox.

    A limit below 0 means all that fit.

    Raises:
        ReplyError: as `presence`, 108 if the channel keeps no history; 112 for a position of
            another epoch.
        BrokerError: the back end failed.
    """
    limit = None if body.limit < 0 else body.limit
    publications, top = await read_history(node, body, limit, _size)
    return HistoryAnswer(list(map(_kept, publications)), top.epoch, top.offset)


def _size(publication: Publication) -> int:
    """At most the bytes of a publication in the answer."""
    size = PLAIN.size(publication)
    return size + len(publication.data) // 2 if publication.binary else size


def _kept(publication: Publication) -> KeptPublication:
    more = publication.offset, publication.tags or None, publication.info
    if publication.binary:
        return KeptPublication(None, b64encode(publication.data).decode(), *more)
    return KeptPublication(msgspec.Raw(publication.data), None, *more)


async def history_remove(node: Node, body: ChannelBody, _budget: Budget) -> Empty:
    """Forget a channel's publications; its top and epoch stay.

    Raises:
        ReplyError, BrokerError: as `history`.
    """
    await node.remove_history(body.channel)
    return _EMPTY
