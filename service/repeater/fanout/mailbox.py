"""Publications on their way to code of this process: the end of fan-out without a socket.

Fan-out writes chunks to outboxes, and knows no other way. So a mailbox is a transport, and its
codec makes one chunk that carries the publications themselves: fan-out has no test for it, and a
delivery to clients costs what it cost.

Rule: a mailbox is bounded in bytes. When it is full, it takes nothing more until its reader has
taken everything, and it knows the channels whose publications it dropped meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from repeater.errors import Disconnect
from repeater.fanout.listener import Listener
from repeater.fanout.outbox import BacklogRoom, Outbox
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.json_format import PLAIN_MESSAGES
from repeater.publication import Publication, Rupture, weight_of

if TYPE_CHECKING:
    from repeater.fanout.channel import Channel
    from repeater.fanout.hub import Hub
    from repeater.fanout.transport import Chunk


class Parcel(bytes):
    """A chunk without a byte that carries the publications of a run. No socket ever gets it."""

    publications: Sequence[Publication]
    weights: Sequence[int]
    weight: int

    @classmethod
    def of(cls, publications: Sequence[Publication]) -> Parcel:
        """Pack a run, and weigh it once for all mailboxes."""
        parcel = cls()
        parcel.publications = publications
        parcel.weights = [weight_of(one) for one in publications]
        parcel.weight = sum(parcel.weights)
        return parcel


class ParcelCodec(Codec):
    """The codec of listeners in this process: each run is one `Parcel`."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("in-process", PLAIN_MESSAGES, frame=None, ping=None)
        self.takes_binary = True

    def size(self, publication: Publication) -> int:
        """The bytes of a publication in memory."""
        return weight_of(publication)

    def publications(
        self, publications: Sequence[Publication], _base: Publication | None = None
    ) -> list[bytes]:
        """One parcel."""
        return [Parcel.of(publications)]


PARCELS: Final = ParcelCodec()


class MailboxListener(Listener):
    """One channel of a mailbox. Lives inside the hub until `Mailbox.leave`."""

    __slots__ = ("channel", "mailbox", "name")

    channel: Channel

    def __init__(self, name: str, mailbox: Mailbox, outbox: Outbox) -> None:
        super().__init__(PARCELS, outbox)
        self.name = name
        self.mailbox = mailbox
        self.positioned = True  # told of gaps and ruptures, with or without a stream

    def lose_position(self) -> None:
        """Have the reader find out what is missing, when it comes to this place."""
        self.mailbox.put(Rupture(self.name))


class Mailbox:
    """What waits for one reader. Opened by `Mailboxes`; ended by `leave`, or with its node.

    Implements `Transport` as far as an outbox uses it: its `write` takes everything, so the outbox
    has no backlog.
    """

    name = "in-process"
    codec: Codec = PARCELS

    def __init__(self, mailboxes: Mailboxes, limit: int) -> None:
        self._mailboxes = mailboxes
        self._limit = limit
        self._listeners: list[MailboxListener] = []
        self._waiting: deque[Publication | Rupture] = deque()
        self._weights: deque[int] = deque()
        self._reader = trio.lowlevel.ParkingLot()
        self.bytes = 0
        """The weight of what waits."""
        self.dropped: dict[str, bool] = {}
        """The channels whose publications did not fit, and whether one of these had no offset."""
        self.ended = False
        """Whether nothing more comes: the node has ended, or `leave` was called."""

    def __len__(self) -> int:
        return len(self._waiting)

    def hear(self, name: str, outbox: Outbox) -> None:
        """Take a channel's publications from now on; the outbox is the mailbox's own."""
        listener = MailboxListener(name, self, outbox)
        listener.channel = self._mailboxes.hub.listen(name, listener)
        self._listeners.append(listener)

    def address(self) -> str:
        """Nobody's."""
        return ""

    def write(self, chunk: Chunk) -> int:
        """Take the publications of a parcel, those that fit."""
        assert isinstance(chunk, Parcel)
        if not self.dropped and self.bytes + chunk.weight <= self._limit and not self.ended:
            self._waiting.extend(chunk.publications)
            self._weights.extend(chunk.weights)
            self.bytes += chunk.weight
            self._wake()
        else:
            for publication, weight in zip(chunk.publications, chunk.weights, strict=True):
                self.put(publication, weight)
        return len(chunk)

    async def send_some(self, chunk: Chunk) -> int:
        """Never called: there is no backlog."""
        raise AssertionError

    def abort(self) -> None:
        """Never called: nobody cuts a mailbox."""

    def release(self) -> None:
        """Never called either: `leave` does everything."""

    async def close(self, disconnect: Disconnect) -> None:
        """Never called either."""

    def put(self, event: Publication | Rupture, weight: int = 0) -> None:
        """Add an event, or note its channel if it does not fit; the first one always fits."""
        if self.ended:
            return
        weight = weight or weight_of(event)
        if self.dropped or (self._waiting and self.bytes + weight > self._limit):
            if not self.dropped:
                self._mailboxes.fell_behind()
            unnumbered = isinstance(event, Publication) and not event.offset
            self.dropped[event.channel] = self.dropped.get(event.channel, False) or unnumbered
            return
        self._waiting.append(event)
        self._weights.append(weight)
        self.bytes += weight
        self._wake()

    def peek(self) -> Publication | Rupture | None:
        """The oldest event that waits."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> None:
        """Take out the event that `peek` returned."""
        self._waiting.popleft()
        self.bytes -= self._weights.popleft()

    def resume(self) -> dict[str, bool]:
        """Take events again after a loss, once nothing waits; returns what `dropped` had."""
        dropped, self.dropped = self.dropped, {}
        return dropped

    async def wait(self) -> None:
        """Wait for the next event or the end. No deadline: a quiet channel is quiet for ever."""
        await self._reader.park()

    def _wake(self) -> None:
        if self._reader:
            self._reader.unpark_all()

    def end(self) -> None:
        """Leave the channels. What waits may still be taken."""
        self.ended = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._mailboxes.hub.leave(listener.channel, listener)
            listener.outbox.close()  # which refers to this mailbox no more
        self._mailboxes.forget(self)
        self._wake()

    def discard(self) -> None:
        """Forget what waits, and take nothing more. Changes nothing outside of the mailbox."""
        self.ended = True
        self._waiting.clear()
        self._weights.clear()
        self.dropped = {}
        self.bytes = 0

    def leave(self) -> None:
        """End, and forget what waits. Idempotent."""
        self.discard()
        self.end()


class MailboxStatistics(msgspec.Struct, frozen=True):
    """The mailboxes of a node that are open, and what became of their readers since it started."""

    open: int
    bytes: int
    """The weight of what waits in all of them."""
    behind: int
    """How often publications did not fit into one."""
    lost: int
    """How often a reader was told that publications are missing."""


class Mailboxes:
    """The mailboxes of one node. Lives inside it; ended by `end`, when fan-out has ended."""

    def __init__(self, hub: Hub, backlogs: BacklogRoom) -> None:
        self.hub = hub
        self.backlogs = backlogs
        self._open: dict[Mailbox, None] = {}
        self._ended = False
        self._behind = 0
        self.lost = 0
        """How often a reader was told that publications are missing; the reader counts."""

    def __len__(self) -> int:
        return len(self._open)

    def statistics(self) -> MailboxStatistics:
        """A snapshot."""
        waiting = sum(mailbox.bytes for mailbox in self._open)
        return MailboxStatistics(len(self._open), waiting, self._behind, self.lost)

    def fell_behind(self) -> None:
        """Note that publications did not fit into a mailbox."""
        self._behind += 1

    def open(self, names: Sequence[str], limit: int) -> Mailbox:
        """Open a mailbox that hears these channels, each once; one that has ended after `end`."""
        mailbox = Mailbox(self, limit)
        if self._ended:
            mailbox.ended = True
            return mailbox
        self._open[mailbox] = None
        outbox = Outbox(mailbox, self.backlogs, _never_cut)
        for name in names:
            mailbox.hear(name, outbox)
        return mailbox

    def forget(self, mailbox: Mailbox) -> None:
        """Note that a mailbox has ended."""
        self._open.pop(mailbox, None)

    def end(self) -> None:
        """End all mailboxes, and those that are opened from now on. Idempotent."""
        self._ended = True
        for mailbox in tuple(self._open):
            mailbox.end()


def _never_cut(_disconnect: Any) -> None:
    """A mailbox takes everything, so no outbox cuts it."""
    raise AssertionError
