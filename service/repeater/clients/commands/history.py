"""The `history` command: past publications and the stream's top (protocol, section 4.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.clients.binary import carried, check_fits
from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.fanout.recovery import Size, fitting
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.centrifugo.replies import HistoryResult, publication_result
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Page
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


async def history(node: ClientNode, client: Client, request: HistoryRequest) -> HistoryResult:
    """Return past publications, as many as fit, and the stream's top.

    At most the limit for clients, and at most half an outbox in bytes. The top tells a client that
    there are more: it asks again, `since` the last publication that it got.

    Raises:
        ReplyError: 108 without history and for a binary channel whose data the client's format
            cannot carry, 103 for a client without permission, 112 for a position
            of another epoch, 107 for an invalid position and for a reverse read from before the
            first publication, 100 if the broker failed.
    """
    options = node.channels.check_kept("history", request.channel)
    check_fits(client.codec, options)
    subscribed = request.channel in client.channels
    node.channels.check("history", request.channel, client.user, subscribed=subscribed)
    most = node.options.history_limit
    limit = most if request.limit < 0 else min(request.limit, most)
    try:
        publications, top = await read(node, request, limit, client.codec.size)
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None
    found = carried(node, client, request.channel, publications)
    return HistoryResult(list(map(publication_result, found)), top.epoch, top.offset)


async def read(node: ClientNode, request: HistoryRequest, limit: int | None, size: Size) -> Page:
    """Return the publications that a request selects, as many as fit, and the stream's top.

    They are at most `limit`, None for all, and at most half an outbox in bytes, by `size`; always
    one, if there is one. What does not fit is not encoded.

    Raises:
        ReplyError, BrokerError: as `Node.history`.
    """
    since = None
    if request.since is not None:
        since = StreamPosition(request.since.offset, request.since.epoch)
    publications, top = await node.history(
        request.channel, since=since, limit=limit, reverse=request.reverse
    )
    room = node.options.outbox_limit // 2
    return fitting(publications, size, room), top
