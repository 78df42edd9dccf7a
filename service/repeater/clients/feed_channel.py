"""Where a feed is in one channel: what was given, what is to be read, and what is lost. All sync.

Rule: a publication with an offset is given only if it follows the position, or if the reader was
told before that publications are missing. Publications without an offset are given as they come.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from repeater.brokers.receipts import Receipt
from repeater.publication import START, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Page
    from repeater.brokers.receipts import Answer
    from repeater.clients.contract import ClientNode


class FeedChannel:
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
        self._again = False
        self._held_late = False
        # Whether the position is one of a later moment than the first `ask`. Then the mailbox may
        # have publications that came since, and that are not behind it.
        self._late = False
        self._doubted: Publication | None = None

    @property
    def settled(self) -> bool:
        """Whether the next publication of this channel is in the mailbox."""
        return self.opened and not (self.due or self.pending or self.lost)

    def ask(self, node: ClientNode) -> None:
        """Ask the broker for the channel's events, and for its position at this moment.

        Raises:
            BrokerError: the engine is down.
        """
        late, self._again = self._again, True
        self.held = node.broker.hold(self.name)
        if self.position is None:
            options = node.channels.options(self.name)
            if options.history_size:
                self.top = node.broker.history(self.name, options, limit=0)
        self._held_late, top_late = not _is_there(self.held), not _is_there(self.top)
        self._late = self.top is not None and (late or top_late)
        self.asked = self._held_late or top_late
        if not self.asked:  # nothing to wait for; if one failed, it is asked again
            held, top = self.held, self.top
            if isinstance(held, Receipt):
                held.result()
            self.open(top.result() if isinstance(top, Receipt) else top)

    def open(self, page: Page | None) -> None:
        """Note that the channel's events come; `page` has its position, if it was asked for.

        If there was a wait until they came, the history may have some that did not come.
        """
        if page is not None:
            self.position = page[1]
        self.due = self.due or (self._held_late and self.position is not None)
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


def _is_there(answer: Answer[object]) -> bool:
    """Whether an answer need not be waited for."""
    return not isinstance(answer, Receipt) or answer.settled
