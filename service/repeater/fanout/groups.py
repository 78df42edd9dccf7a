"""The listeners of a channel by one codec, laid out for fan-out.

Fan-out goes over thousands of listeners for each event, and the listeners seldom change between two
events. So fan-out gets tuples that are kept until a listener comes or goes: it copies nothing and
touches only the outbox of each listener. With 9,000 listeners this is most of what can be saved:
memory outside the processor's cache costs more than the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from repeater.fanout.listener import Listener
    from repeater.fanout.outbox import Outbox

SLICE: Final = 32  # listeners between two looks at the clock: about 0.3 ms of writing


class Audience:
    """The listeners of a group at one moment, in the order in which they came. Never changed."""

    __slots__ = ("listeners", "slices")

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self.listeners = listeners
        outboxes = tuple([one.outbox for one in listeners])
        self.slices = [outboxes[at : at + SLICE] for at in range(0, len(outboxes), SLICE)]
        """The listeners' outboxes in the same order, in tuples of `SLICE`; the last has the rest.

        Cut here, and not for each event: a cut writes to the reference count of each outbox.
        """

    def present(self, number: int) -> tuple[Outbox, ...]:
        """The slice of this number, without the outboxes of listeners that have ended."""
        start = number * SLICE
        listeners = self.listeners[start : start + SLICE]
        return tuple([one.outbox for one in listeners if not one.ended])


class Group:
    """Listeners by one codec. Lives inside a channel from its first listener to its last."""

    __slots__ = ("_audience", "_listeners")

    def __init__(self) -> None:
        self._listeners: dict[Listener, None] = {}
        self._audience: Audience | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def add(self, listener: Listener) -> None:
        """Add one listener."""
        self._listeners[listener] = None
        self._audience = None

    def discard(self, listener: Listener) -> bool:
        """Remove one listener; False if it was not there."""
        if listener not in self._listeners:
            return False
        del self._listeners[listener]
        self._audience = None
        return True

    def audience(self) -> Audience:
        """The listeners of this moment. Made anew only after a listener came or went."""
        if self._audience is None:
            self._audience = Audience(tuple(self._listeners))
        return self._audience
