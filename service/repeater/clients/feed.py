"""A feed: the publications of channels, for code in the node's own process.

Fan-out puts them into a mailbox, whose bound is in bytes. Rule: each publication of a stream is
given once and in order, or the reader is told from where on publications are missing. So the feed
knows its position in each channel, and looks at each publication: one that it has given is skipped,
and one that does not follow makes the feed read the history first.

The hub has the mailbox and never the feed. So a feed that nobody refers to any more, as after a
`break`, ends at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
import trio

from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError, RepeaterError, ReplyError
from repeater.fanout.recovery import named_position
from repeater.publication import START, Publication, Rupture, StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Page
    from repeater.brokers.receipts import Answer
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


class _Place:
    """Where a feed is in one channel. Lives inside the feed. All sync."""

    def __init__(self, name: str, since: StreamPosition | None) -> None:
        self.name = name
        self.position = since
        """The last position that was given; None without a stream, and while it is not known."""
        self.opened = False
        """Whether the channel's events come, and its position is known, if it has one."""
        self.asked = False
        self.held: Answer[None] = None
        self.top: Answer[Page] | None = None
        """The answers that `opened` waits for, once they are asked for."""
        self.loose = False
        """Whether the next publication need not follow the position."""
        self.due = since is not None
        """Whether the history is to be read before the mailbox."""
        self.pending: deque[Publication] = deque()
        """What was read from the history, and is not given yet."""
        self.lost = ""
        """Why publications are missing, as long as the reader was not told."""
        self._late = False
        self._doubted: Publication | None = None

    @property
    def settled(self) -> bool:
        """Whether the next publication of this channel is in the mailbox."""
        return self.opened and not (self.due or self.pending or self.lost)

    def ask(self, node: ClientNode) -> None:
        """Ask the broker for the channel's events, and for its position at this moment.

        Raises:
            BrokerError: the engine is known to be down.
        """
        self.held = node.broker.hold(self.name)
        if self.position is None:
            options = node.channels.options(self.name)
            if options.history_size:
                self.top = node.broker.history(self.name, options, limit=0)
        self.asked = True
        if _is_there(self.held) and _is_there(self.top):
            top = self.top
            self.open(top.result() if isinstance(top, Receipt) else top)

    def open(self, page: Page | None, *, held_late: bool = False, late: bool = False) -> None:
        """Note that the channel's events come, and where it was.

        Args:
            page: Has the channel's position; None if it has none, or if it was given.
            held_late: Whether there was a wait until they came: the history may have some more.
            late: Whether the position is one of a later moment than `ask`. Then the mailbox may
                have publications that came since, and that are not behind it.
        """
        if page is not None:
            self.position, self._late = page[1], late
        self.due = self.due or (held_late and self.position is not None)
        self.opened = True
        self.held = self.top = None

    def given(self, publication: Publication) -> bool:
        """Whether it was given already: the history had it, too."""
        at = self.position
        if at is None or not publication.offset or publication.epoch != at.epoch:
            return False
        return publication.offset <= at.offset and not self._late

    def follows(self, publication: Publication) -> bool:
        """Whether nothing is missing between the position and this publication."""
        at = self.position
        if at is None or self.loose or not publication.offset:
            return True
        if publication.epoch != at.epoch:
            return False
        early = self._late and publication.offset <= at.offset
        return early or publication.offset == at.offset + 1

    def give(self, publication: Publication) -> Publication:
        """Move the position to this publication."""
        if publication.offset:
            self.position = publication.position
            self.loose = self._late = False
        return publication

    def doubt(self, publication: Publication) -> bool:
        """Note that it does not follow; False if the history did not help the last time."""
        first, self._doubted = self._doubted is not publication, publication
        return first

    def miss(self, reason: str) -> None:
        """Note that publications are missing: the reader is told, and what comes next is given."""
        self.lost = reason
        self.loose = True
        self.due = False

    def read(self, page: Page) -> None:
        """Take a part of the history behind the position; note a loss if it does not follow."""
        publications, top = page
        since = self.position
        assert since is not None
        following = publications[0].offset if publications else top.offset + 1
        self.due = bool(publications) and publications[-1].offset < top.offset
        if since == START:
            self.position, self.loose = StreamPosition(0, top.epoch), True
        elif since.epoch not in ("", top.epoch):
            self.miss("the channel's stream began anew")
        elif since.offset > top.offset:
            self.position = None
            self.miss("the channel's stream ends before it")
        elif following != since.offset + 1:
            self.miss("the channel's history does not reach so far back")
            self.due = bool(publications) and publications[-1].offset < top.offset
        elif not since.epoch:
            self.position = StreamPosition(since.offset, top.epoch)
        self.pending.extend(publications)


class Feed:
    """The publications of some channels, one after the other. Made by `Node.listen`.

    An async iterator of `Publication` for one task at a time, and an async context manager. It ends
    with its block, by `close`, when nothing refers to it any more, or with the node.
    """

    def __init__(
        self,
        node: ClientNode,
        mailbox: Mailbox,
        places: Iterable[_Place],
        token: trio.lowlevel.TrioToken,
        *,
        recover: bool,
    ) -> None:
        self._node = node
        self._mailbox = mailbox
        self._places = {place.name: place for place in places}
        self._unsettled = dict.fromkeys(self._places.values())
        """Channels whose next publication is not in the mailbox."""
        self._recover = recover
        self._busy = False
        self._behind = 0
        self._recovered = 0
        self._token = token

    def ask(self) -> None:
        """Ask the broker for all channels at once. What fails is asked again by the reader."""
        for place in self._places.values():
            with suppress(BrokerError):
                place.ask(self._node)
        self._unsettled = dict.fromkeys(one for one in self._places.values() if not one.settled)

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
                for place in self._places.values():
                    await self._open(place)
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
            place = self._places[event.channel]
            if isinstance(event, Rupture):
                mailbox.take()
                self._lose(place, "the engine lost them")
                return None
            if place.given(event):
                mailbox.take()
            elif place.follows(event):
                mailbox.take()
                return place.give(event)
            else:
                again = place.doubt(event)
                self._lose(place, "the engine did not send them", recover=again)
                return None
        if mailbox.dropped:
            self._behind += 1
            for name, unnumbered in mailbox.resume().items():
                place = self._places[name]
                self._lose(place, "they did not fit into the feed's limit")
                if unnumbered and not place.lost:  # in no history
                    place.miss("they did not fit into the feed's limit")
                    place.due = True
        return None

    def _lose(self, place: _Place, reason: str, *, recover: bool = True) -> None:
        """Have the history read for what is missing, or the reader told if that is not possible."""
        self._unsettled[place] = None
        if recover and self._recover and place.position is not None and not self._mailbox.ended:
            place.due = True
        else:
            place.miss(reason)

    async def _settle(self, place: _Place) -> Publication | None:
        """Do the next step for a channel whose next publication is not in the mailbox."""
        if place.lost:
            reason, place.lost = place.lost, ""
            self._node.mailboxes.lost += 1
            raise ListenerBehindError(place.name, place.position, reason)
        if place.pending:
            publication = place.pending.popleft()
            if place.given(publication):
                return None
            if place.follows(publication):
                self._recovered += 1
                return place.give(publication)
            place.pending.appendleft(publication)
            place.miss("the channel's history has a gap")
        elif not place.opened and not self._mailbox.ended:
            await self._open(place)
        elif place.due:
            await self._read(place)
        else:
            self._unsettled.pop(place, None)
        return None

    async def _open(self, place: _Place) -> None:
        """Wait until the channel's events come, and its position is known."""
        if place.opened or self._mailbox.ended:
            return
        answered = self._node.answered
        try:
            if not place.asked:
                place.ask(self._node)
            held, page = place.held, place.top
            held_late, late = not _is_there(held), not _is_there(page)
            if isinstance(held, Receipt):
                await answered(held)
            if isinstance(page, Receipt):
                page = await answered(page)
        except BrokerError:
            place.asked = False
            self._node.broker_errors["subscribe"] += 1
            raise
        if not place.opened:  # at once, if the engine was asked once more
            place.open(page, held_late=held_late, late=late)

    async def _read(self, place: _Place) -> None:
        """Read a part of the history behind a channel's position."""
        since, node = place.position, self._node
        options = None
        with suppress(ReplyError):  # a reload may have removed the namespace
            options = node.channels.options(place.name)
        if self._mailbox.ended:
            place.miss("the node has ended")
        elif options is None or since is None or not options.history_size:
            place.miss("the channel keeps no history")
        else:
            try:
                page = node.broker.history(place.name, options, since=since, limit=_PAGE)
                if isinstance(page, Receipt):
                    page = await node.answered(page)
            except BrokerError:
                node.broker_errors["history"] += 1
                raise
            place.read(page)


def _is_there(answer: Answer[object]) -> bool:
    """Whether an answer need not be waited for."""
    return not isinstance(answer, Receipt) or answer.settled


def open_feed(
    node: ClientNode,
    channels: Sequence[str],
    since: StreamPosition | Mapping[str, StreamPosition] | None,
    *,
    recover: bool,
    limit: int,
) -> Feed:
    """Open a feed; see `ChannelOperations.listen`."""
    names = tuple(dict.fromkeys(channels))
    if not names or limit < 1:
        raise ValueError("listen needs a channel, and a limit above 0")
    positions = _positions(node, names, since)
    for name in names:
        node.channels.options(name)
    places = [_Place(name, positions.get(name)) for name in names]
    token = trio.lowlevel.current_trio_token()  # raises outside of Trio, before anything is open
    mailbox = node.mailboxes.open(names, limit)
    feed = Feed(node, mailbox, places, token, recover=recover)
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
