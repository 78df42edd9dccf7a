"""`channels` and `info`: the server as a whole, over all its workers, or all nodes of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.clients.overview import Summary
    from repeater.node import Node

_PATTERN_LIMIT: Final = 1_024  # characters; far more than a channel's name has
_TOO_LONG: Final = Why(Cause.REQUEST, f"pattern: it has more than {_PATTERN_LIMIT} characters")


class ChannelsBody(msgspec.Struct, frozen=True):
    """`POST /api/channels`. Without a pattern, every channel matches."""

    pattern: str = ""


class ChannelInfo(msgspec.Struct, frozen=True):
    """The number of connections that hear a channel."""

    num_clients: int


class ChannelsResult(msgspec.Struct, frozen=True):
    """The channels that have subscribers, by name."""

    channels: dict[str, ChannelInfo]


class InfoBody(msgspec.Struct, frozen=True):
    """`POST /api/info`. It has no fields."""


class Metrics(msgspec.Struct, frozen=True):
    """Counts of the last `interval` seconds. The interval begins at the start of the node."""

    interval: float
    items: dict[str, float]


class NodeInfo(msgspec.Struct, frozen=True):
    """One server, with all its workers; in a cluster one node. Every field is always present.

    `uptime` is in seconds.
    """

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_channels: int
    num_subs: int
    uptime: int
    metrics: Metrics


class InfoResult(msgspec.Struct, frozen=True):
    """The servers; Centrifugo calls them nodes. Without a cluster it is this one only."""

    nodes: list[NodeInfo]


async def channels(node: Node, body: ChannelsBody, budget: Budget) -> ChannelsResult:
    """Return the channels with subscribers whose names match, with `*`, `?` and `[abc]`.

    The signs mean the same as in a shell.

    Raises:
        ReplyError: the pattern is too long (107), or a worker or node has too many channels (106).
        BrokerError: a worker, or another node, did not answer.
    """
    if len(body.pattern) > _PATTERN_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_TOO_LONG)
    sizes = await node.channel_sizes(body.pattern, give_way=budget.give_way)
    return ChannelsResult({name: ChannelInfo(size) for name, size in sizes.items()})


async def info(node: Node, _body: InfoBody, _budget: Budget) -> InfoResult:
    """Return each server's name, version, numbers of clients and channels, and counts.

    Raises:
        BrokerError: the supervisor did not answer, or the engine is down.
    """
    return InfoResult([_node_info(one) for one in await node.summaries()])


def _node_info(server: Summary) -> NodeInfo:
    counts = server.counts
    return NodeInfo(
        uid=server.id,
        name=server.name,
        version=server.version,
        num_clients=counts.clients,
        num_users=server.users,
        num_channels=server.channels,
        num_subs=counts.subscriptions,
        uptime=int(server.uptime),
        metrics=Metrics(server.uptime, {name: float(one) for name, one in counts.done.items()}),
    )
