"""`channels` and `info`: the node as a whole."""

from __future__ import annotations

import platform
import re
from fnmatch import translate
from typing import TYPE_CHECKING, Final

import msgspec

from repeater import __version__
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

_PATTERN_LIMIT: Final = 1_024  # characters; far more than a channel's name has
_SLICE: Final = 256  # channels between two looks at the clock


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
    """One node. Every field is always present. `uptime` is in whole seconds."""

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
    """The list of nodes. It holds this node only."""

    nodes: list[NodeInfo]


async def channels(node: Node, body: ChannelsBody, budget: Budget) -> ChannelsResult:
    """Return the channels with subscribers whose names match, with `*`, `?` and `[abc]`.

    The signs mean the same as in a shell.

    Raises:
        ReplyError: the pattern is too long (107).
    """
    if len(body.pattern) > _PATTERN_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    matches = re.compile(translate(body.pattern or "*")).match
    found: dict[str, ChannelInfo] = {}
    for number, (name, channel) in enumerate(tuple(node.hub.channels.items())):
        # A channel may have lost its last subscriber while other tasks had their turn.
        if matches(name) and not channel.empty:
            found[name] = ChannelInfo(channel.size)
        if number % _SLICE == 0:
            await budget.give_way()
    return ChannelsResult(found)


async def info(node: Node, _body: InfoBody, _budget: Budget) -> InfoResult:
    """Return the node's name, version, numbers of clients and channels, and counts."""
    statistics = node.statistics()
    repeater = statistics.repeater
    uptime = node.uptime()
    items = {
        "publications": repeater.publications,
        "deliveries": repeater.deliveries,
        "batches": repeater.batches,
        "bytes_out": repeater.bytes_out,
        "gaps": repeater.gaps,
        "disconnects": sum(statistics.ended.values()),
    }
    one = NodeInfo(
        uid=node.id,
        name=platform.node(),
        version=__version__,
        num_clients=statistics.clients,
        num_users=statistics.users,
        num_channels=statistics.channels,
        num_subs=statistics.subscriptions,
        uptime=int(uptime),
        metrics=Metrics(uptime, {name: float(count) for name, count in items.items()}),
    )
    return InfoResult([one])
