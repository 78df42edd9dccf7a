"""A feed: the publications of channels, for code in the node's own process.

Fan-out puts them into a mailbox, whose bound is in bytes. Rule: each publication of a stream is
given once and in order, or the reader is told from where on publications are missing. So the feed
knows its position in each channel, and looks at each publication: one that it has given is skipped,
and one that does not follow makes the feed read the history first.

The hub has the mailbox and never the feed. So a feed that nobody refers to any more, as after a
`break`, ends at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
import trio

from repeater.brokers.receipts import Receipt
from repeater.clients.feed_channel import FeedChannel
from repeater.errors import BrokerError, RepeaterError, ReplyError
from repeater.fanout.recovery import named_position
from repeater.publication import Publication, Rupture, StreamPosition

if TYPE_CHECKING:
    from repeater.clients.contract import ClientNode
    from repeater.fanout.mailbox import Mailbox

FEED_LIMIT: Final = 1_048_576
"""Bytes that wait for the reader of a feed, unless the program says otherwise."""

_PAGE: Final = 64  # publications of a history that are read at once


class ListenerBehindError(RepeaterError):
    """A feed cannot give publications of a channel: they are lost, or it may not recover them.

    The feed is not ended. Iterate again, and it goes on behind what is missing.
    """

    def __init__(self, channel: str, position: StreamPosition | None, reason: str) -> None:
        after = "" if position is None else f" after offset {position.offset}"
        super().__init__(f"publications of channel {channel!r} are missing{after}: {reason}")
        self.channel = channel
        self.position = position
        """The last position that was given: what is missing comes behind it. None if unknown."""
        self.reason = reason


class FeedStatistics(msgspec.Struct, frozen=True):
    """What waits for the reader of a feed, and how it kept up."""

    waiting: int
    """Publications in the mailbox."""
    waiting_bytes: int
    behind: int
    """How often publications did not fit into the mailbox."""
    recovered: int
    """Publications that were read from the history."""


class Feed:
    """The publications of some channels, one after the other. Made by `Node.listen`.

    An async iterator of `Publication` for one task at a time, and an async context manager. It ends
    with its block, by `close`, when nothing refers to it any more, or with the node.
    """

    def __init__(
        self,
        node: ClientNode,
        mailbox: Mailbox,
        channels: Iterable[FeedChannel],
        token: trio.lowlevel.TrioToken,
        *,
        recover: bool,
    ) -> None:
        self._node = node
        self._mailbox = mailbox
        self._channels = {channel.name: channel for channel in channels}
        self._unsettled = dict.fromkeys(self._channels.values())
        """Channels whose next publication is not in the mailbox."""
        self._recover = recover
        self._busy = False
        self._behind = 0
        self._recovered = 0
        self._token = token

    def ask(self) -> None:
        """Ask the broker for all channels at once. What fails is asked again by the reader."""
        for channel in self._channels.values():
            with suppress(BrokerError):
                channel.ask(self._node)
        self._unsettled = dict.fromkeys(one for one in self._channels.values() if not one.settled)

    def __del__(self) -> None:
        # Also called by the garbage collector: in any thread, and in the middle of fan-out. So the
        # hub's part runs in a turn of its own.
        mailbox = self._mailbox
        if not mailbox.ended:
            mailbox.discard()
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(mailbox.leave)

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        """Wait until the engine gives the channels to this node: nothing is missed from now on.

        Raises:
            BrokerError: the engine failed, or did not answer in time.
        """
        with self._alone():
            try:
                await trio.lowlevel.checkpoint()
                for channel in self._channels.values():
                    await self._open(channel)
            except BaseException:  # failed or cancelled: there is no block that would end the feed
                self.close()
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the feed, and forget what waits: iterations end. Idempotent."""
        self._mailbox.leave()
        self._unsettled.clear()

    def statistics(self) -> FeedStatistics:
        """A snapshot."""
        mailbox = self._mailbox
        return FeedStatistics(len(mailbox), mailbox.bytes, self._behind, self._recovered)

    async def __anext__(self) -> Publication:
        """Wait for the next publication. Always a checkpoint; cancelled, nothing is lost.

        Raises:
            ListenerBehindError: publications are missing here. Iterate again to go on behind them.
            BrokerError: the history cannot be read now, or the channel cannot be held. Nothing is
                lost: iterate again to try again.
            trio.BusyResourceError: another task waits for the next publication.
        """
        with self._alone():
            await trio.lowlevel.checkpoint()
            while True:
                while self._unsettled:
                    found = await self._settle(next(iter(self._unsettled)))
                    if found is not None:
                        return found
                found = self._from_mailbox()
                if found is not None:
                    return found
                if self._unsettled:
                    continue
                if self._mailbox.ended:
                    raise StopAsyncIteration
                await self._mailbox.wait()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise trio.BusyResourceError("another task waits for this feed's next publication")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _from_mailbox(self) -> Publication | None:
        """The next publication, if no history has to be read before it."""
        mailbox = self._mailbox
        while (event := mailbox.peek()) is not None:
            channel = self._channels[event.channel]
            if isinstance(event, Rupture):
                mailbox.take()
                self._lose(channel, "the engine lost them")
                return None
            if channel.given(event):
                mailbox.take()
            elif channel.follows(event):
                mailbox.take()
                return channel.give(event)
            else:
                again = channel.doubt(event)
                self._lose(channel, "the engine did not send them", recover=again)
                return None
        if mailbox.dropped:
            self._behind += 1
            for name, unnumbered in mailbox.resume().items():
                channel = self._channels[name]
                self._lose(channel, "they did not fit into the feed's limit")
                if unnumbered and not channel.lost:  # in no history
                    channel.miss("they did not fit into the feed's limit")
                    channel.due = True
        return None

    def _lose(self, channel: FeedChannel, reason: str, *, recover: bool = True) -> None:
        """Have the history read for what is missing, or the reader told if that is not possible."""
        self._unsettled[channel] = None
        if recover and self._recover and channel.position is not None and not self._mailbox.ended:
            channel.due = True
        else:
            channel.miss(reason)

    async def _settle(self, channel: FeedChannel) -> Publication | None:
        """Do the next step for a channel whose next publication is not in the mailbox."""
        if channel.lost:
            reason, channel.lost = channel.lost, ""
            self._node.mailboxes.lost += 1
            raise ListenerBehindError(channel.name, channel.position, reason)
        if channel.pending:
            publication = channel.pending.popleft()
            if channel.given(publication):
                return None
            if channel.follows(publication):
                self._recovered += 1
                return channel.give(publication)
            channel.pending.appendleft(publication)
            channel.miss("the channel's history has a gap")
        elif not channel.opened and not self._mailbox.ended:
            await self._open(channel)
        elif channel.due:
            await self._read(channel)
        else:
            self._unsettled.pop(channel, None)
        return None

    async def _open(self, channel: FeedChannel) -> None:
        """Wait until the channel's events come, and its position is known."""
        if channel.opened or self._mailbox.ended:
            return
        answered = self._node.answered
        try:
            if not channel.asked:
                channel.ask(self._node)
            held, page = channel.held, channel.top
            if isinstance(held, Receipt):
                await answered(held)
            if isinstance(page, Receipt):
                page = await answered(page)
        except BrokerError:
            channel.asked = False
            self._node.broker_errors["subscribe"] += 1
            raise
        if not channel.opened:  # at once, if the engine was asked once more
            channel.open(page)

    async def _read(self, channel: FeedChannel) -> None:
        """Read a part of the history behind a channel's position."""
        since, node = channel.position, self._node
        options = None
        with suppress(ReplyError):  # a reload may have removed the namespace
            options = node.channels.options(channel.name)
        if self._mailbox.ended:
            channel.miss("the node has ended")
        elif options is None or since is None or not options.history_size:
            channel.miss("the channel keeps no history")
        else:
            try:
                page = node.broker.history(channel.name, options, since=since, limit=_PAGE)
                if isinstance(page, Receipt):
                    page = await node.answered(page)
            except BrokerError:
                node.broker_errors["history"] += 1
                raise
            channel.read(page)


def open_feed(
    node: ClientNode,
    names: Sequence[str],
    since: StreamPosition | Mapping[str, StreamPosition] | None,
    *,
    recover: bool,
    limit: int,
) -> Feed:
    """Open a feed; see `ChannelOperations.listen`."""
    names = tuple(dict.fromkeys(names))
    if not names or limit < 1:
        raise ValueError("listen needs a channel, and a limit above 0")
    positions = _positions(node, names, since)
    for name in names:
        node.channels.options(name)
    channels = [FeedChannel(name, positions.get(name)) for name in names]
    token = trio.lowlevel.current_trio_token()  # raises outside of Trio, before anything is open
    mailbox = node.mailboxes.open(names, limit)
    feed = Feed(node, mailbox, channels, token, recover=recover)
    if not mailbox.ended:
        feed.ask()
    return feed


def _positions(
    node: ClientNode,
    names: Sequence[str],
    since: StreamPosition | Mapping[str, StreamPosition] | None,
) -> Mapping[str, StreamPosition]:
    """The positions by channel, checked."""
    if isinstance(since, StreamPosition):
        if len(names) > 1:
            raise ValueError("since must have the position of each channel by its name")
        since = {names[0]: since}
    positions = since or {}
    for name, position in positions.items():
        if name not in names:
            raise ValueError(f"since has a channel that the feed does not hear: {name!r}")
        node.channels.check_kept("history", name)
        named_position(position.offset, position.epoch)
    return positions
