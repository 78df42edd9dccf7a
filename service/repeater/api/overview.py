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
    """`POST /api/channels`; no pattern is every channel."""

    pattern: str = ""


class ChannelInfo(msgspec.Struct, frozen=True):
    """How many connections hear a channel."""

    num_clients: int


class ChannelsResult(msgspec.Struct, frozen=True):
    """The channels that somebody hears, by name."""

    channels: dict[str, ChannelInfo]


class InfoBody(msgspec.Struct, frozen=True):
    """`POST /api/info`: nothing to say."""


class Metrics(msgspec.Struct, frozen=True):
    """What was counted during the last `interval` seconds, which is since the start."""

    interval: float
    items: dict[str, float]


class NodeInfo(msgspec.Struct, frozen=True):
    """One node; all of it is always there. `uptime` is whole seconds."""

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
    """Every node, which is this one."""

    nodes: list[NodeInfo]


async def channels(node: Node, body: ChannelsBody, budget: Budget) -> ChannelsResult:
    """The channels that somebody hears and whose names match: `*`, `?` and `[abc]` as in a shell.

    Raises:
        ReplyError: the pattern is too long (107).
    """
    if len(body.pattern) > _PATTERN_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    matches = re.compile(translate(body.pattern or "*")).match
    found: dict[str, ChannelInfo] = {}
    for number, (name, channel) in enumerate(tuple(node.hub.channels.items())):
        # One that emptied while others had their turn is none any more.
        if matches(name) and not channel.empty:
            found[name] = ChannelInfo(channel.size)
        if number % _SLICE == 0:
            await budget.give_way()
    return ChannelsResult(found)


async def info(node: Node, _body: InfoBody, _budget: Budget) -> InfoResult:
    """What this node is and how much there is on it."""
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
