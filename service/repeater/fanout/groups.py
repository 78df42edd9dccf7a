"""Who hears a channel by one codec, laid out for fan-out.

Fan-out goes over thousands of listeners for each event, and they seldom change between two. So it
is given tuples that are kept until somebody comes or goes: it copies nothing and, of each listener,
touches the outbox only. At 9,000 that is most of what there is to save: what isn't in the
processor's cache costs more than the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from repeater.fanout.hub import Subscription
    from repeater.fanout.outbox import Outbox


@attrs.frozen(eq=False)
class Audience:
    """The listeners of a group at one moment, in the order in which they came."""

    outboxes: tuple[Outbox, ...]
    subscriptions: tuple[Subscription, ...]
    """Theirs, in the same order."""

    def remaining(self, start: int = 0) -> Audience:
        """Those from `start` on who listen still, and by the same subscription."""
        left = tuple(one for one in self.subscriptions[start:] if not one.ended)
        return Audience(tuple(one.client.outbox for one in left), left)


class Group:
    """Listeners by one codec. Lives inside a channel from its first listener to its last."""

    __slots__ = ("_audience", "_subscriptions")

    def __init__(self) -> None:
        self._subscriptions: dict[Subscription, None] = {}
        self._audience: Audience | None = None

    def __len__(self) -> int:
        return len(self._subscriptions)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._subscriptions)

    def add(self, subscription: Subscription) -> None:
        """Have one more."""
        self._subscriptions[subscription] = None
        self._audience = None

    def discard(self, subscription: Subscription) -> bool:
        """Have one less; False if it was not there."""
        if subscription not in self._subscriptions:
            return False
        del self._subscriptions[subscription]
        self._audience = None
        return True

    def audience(self) -> Audience:
        """Who listens now. Made anew only after somebody came or went."""
        if self._audience is None:
            subscriptions = tuple(self._subscriptions)
            outboxes = tuple(one.client.outbox for one in subscriptions)
            self._audience = Audience(outboxes, subscriptions)
        return self._audience
