"""What a server has, over all its nodes: the channels with subscribers, and the counts.

A node answers for itself. The channels of several nodes are added name by name. The counts of a
server come from its supervisor, which knows what must not be added: a user with connections on two
workers is one user.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, Final

import msgspec

from repeater import __version__
from repeater.clients.questions import Questions, encoded
from repeater.errors import BrokerError

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.clients.contract import ClientNode
    from repeater.turns import GiveWay

_SLICE: Final = 256  # channels between two looks at the clock


class Counts(msgspec.Struct, frozen=True):
    """What one node has now, and has done since its start; both may be added up."""

    clients: int
    subscriptions: int
    done: dict[str, int]
    """`publications`, `deliveries`, `batches`, `bytes_out`, `gaps`, `disconnects`."""


class Summary(msgspec.Struct, frozen=True):
    """One server: its id, its host's name, and the counts of its nodes together."""

    id: str
    name: str
    version: str
    counts: Counts
    users: int
    """Different users with a connection, not counting the anonymous user."""
    channels: int
    """Different channels with a subscriber."""
    uptime: float
    """Seconds since its start, in which the work was done."""


class Overview:
    """The methods of a node that look at all nodes."""

    __slots__ = ()

    async def channel_sizes(
        self: ClientNode, pattern: str = "", *, give_way: GiveWay | None = None
    ) -> dict[str, int]:
        """Return the number of connections that hear a channel, for each channel that matches.

        `*`, `?` and `[abc]` mean the same as in a shell; an empty pattern matches every name. A
        checkpoint when `give_way` is one, and if there are other nodes.

        Raises:
            ReplyError: another node has more channels than an answer has room for (106).
            BrokerError: another node did not answer.
        """
        sizes = await _sizes_here(self, pattern, give_way or self.turns.give_way)
        for answer in await self.questions.ask_others("channels", pattern):
            for name, size in msgspec.msgpack.decode(answer, type=dict[str, int]).items():
                sizes[name] = sizes.get(name, 0) + size
        return sizes

    async def summaries(self: ClientNode) -> list[Summary]:
        """Return the servers, this node's first. A checkpoint only if there are other nodes.

        A node of a cluster that does not answer in time is left out: it may have died just now.

        Raises:
            BrokerError: the supervisor does not answer, or the engine is down, by which the nodes
                of a cluster are asked.
        """
        me = self.control.me
        if me.server != self.id:
            own = msgspec.msgpack.decode(await self.questions.ask_server("summary"), type=Summary)
        else:
            own = summary_here(self)
        if all(one.server == me.server for one in self.control.members()):
            return [own]
        # Several servers are a cluster, each member of which is a server of its own.
        if outage := self.broker.outage():
            raise BrokerError(outage)
        answers = await self.questions.ask_those_there("summary")
        return [own, *(msgspec.msgpack.decode(one, type=Summary) for one in answers)]


def summary_here(node: ClientNode) -> Summary:
    """The summary of a server of one process."""
    seen = node.statistics()
    return Summary(
        id=node.id,
        name=node.control.me.name,
        version=__version__,
        counts=counts_here(node),
        users=seen.users,
        channels=seen.channels,
        uptime=node.uptime(),
    )


def counts_here(node: ClientNode) -> Counts:
    """The counts of this node."""
    seen = node.statistics()
    done = {
        "publications": seen.repeater.publications,
        "deliveries": seen.repeater.deliveries,
        "batches": seen.repeater.batches,
        "bytes_out": seen.repeater.bytes_out,
        "gaps": seen.repeater.gaps,
        "disconnects": sum(seen.ended.values()),
    }
    return Counts(seen.clients, seen.subscriptions, done)


async def _sizes_here(node: ClientNode, pattern: str, give_way: GiveWay) -> dict[str, int]:
    matches = re.compile(translate(pattern or "*")).match
    found: dict[str, int] = {}
    for number, (name, channel) in enumerate(tuple(node.hub.channels.items())):
        # A channel may have lost its last subscriber while other tasks had their turn.
        if matches(name) and not channel.empty:
            found[name] = channel.size
        if number % _SLICE == 0:
            await give_way()
    return found


def register(node: ClientNode, questions: Questions) -> None:
    """Have a node answer the others."""

    async def channels(_asker: Member, body: bytes) -> bytes:
        pattern = msgspec.msgpack.decode(body, type=str)
        return encoded(await _sizes_here(node, pattern, node.turns.give_way))

    async def counts(_asker: Member, _body: bytes) -> bytes:
        return encoded(counts_here(node))

    async def summary(_asker: Member, _body: bytes) -> bytes:
        return encoded(summary_here(node))

    questions.at_end("counts", lambda: encoded(counts_here(node)))
    for answerer in (channels, counts, summary):
        questions.register(answerer.__name__, answerer)
