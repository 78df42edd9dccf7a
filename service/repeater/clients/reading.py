"""What is kept of a channel, for whoever may ask: who is in it, and what was published.

Whether it is kept at all is checked here; whether somebody may know it is the caller's to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.centrifugo.replies import (
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    publication_result,
)
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from repeater.node import Node

_UINT64: Final = 2**64 - 1


def check_presence(node: Node, channel: str) -> None:
    """Whether a channel keeps presence.

    Raises:
        ReplyError: 108 if not, 107 or 102 for its name.
    """
    if not node.channels.options(channel).presence:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)


def check_history(node: Node, channel: str) -> None:
    """Whether a channel keeps history. Raises as `check_presence`."""
    if not node.channels.options(channel).history_size:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)


async def presence(node: Node, channel: str) -> PresenceResult:
    """Who is in a channel that keeps presence.

    Raises:
        BrokerError: the store failed.
    """
    with _counted(node, "presence"):
        return PresenceResult(dict(await node.presence.members(channel)))


async def presence_stats(node: Node, channel: str) -> PresenceStatsResult:
    """How many are in it. Raises as `presence`."""
    with _counted(node, "presence"):
        return PresenceStatsResult(*await node.presence.count(channel))


async def history(node: Node, request: HistoryRequest, most: int | None) -> HistoryResult:
    """Past publications of a channel that keeps them, and the stream's top (section 4.6).

    Args:
        node: Whose channel it is.
        request: A negative limit is for as many as there may be.
        most: How many that is; None for all.

    Raises:
        ReplyError: 112 for a position of another epoch, 107 for one that is none, and for a
            reverse read from before the first publication.
        BrokerError: the back end failed.
    """
    since = _position(request)
    options = node.channels.options(request.channel)
    most = options.history_size if most is None else most
    limit = most if request.limit < 0 else min(request.limit, most)
    with _counted(node, "history"):
        publications, top = await node.broker.history(
            request.channel, options, since=since, limit=limit, reverse=request.reverse
        )
    if since is not None and since.epoch not in ("", top.epoch):
        raise ReplyError(ErrorCode.UNRECOVERABLE_POSITION)
    return HistoryResult([publication_result(one) for one in publications], top.epoch, top.offset)


async def remove_history(node: Node, channel: str) -> None:
    """Forget the publications of a channel that keeps them; its top and epoch stay.

    Raises:
        BrokerError: the back end failed.
    """
    with _counted(node, "history"):
        await node.broker.remove_history(channel)


@contextmanager
def _counted(node: Node, asked: str) -> Iterator[None]:
    try:
        yield
    except BrokerError:
        node.broker_errors[asked] += 1
        raise


def _position(request: HistoryRequest) -> StreamPosition | None:
    since = request.since
    if since is None:
        return None
    if not 0 <= since.offset <= _UINT64 or (request.reverse and not since.offset):
        raise ReplyError(ErrorCode.BAD_REQUEST)
    return StreamPosition(since.offset, since.epoch)
