"""Which request begins next behind Hypercorn: one in each pass of the event loop.

An application works for a request in a few passes, a millisecond in all. So a pass has about the
work of one request, however many there are. A connection that is reset because its peer does not
read needs such a turn, too: what waited for it ends then.

Rule: what a stranger has sent already makes nobody else wait. A request stands in one of two lines,
which are served in turns: the first one of its connection, and any of a known caller, in one; later
ones in the other. Within a line the addresses take turns. So a newcomer waits for a few passes,
where hundreds of connections always have a next request; and these go on, too.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from repeater.front.open_connections import OpenConnection


class _Line:
    """Tasks that wait, by address. Owned by its `Starts`."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()

    def add(self, address: str, task: trio.lowlevel.Task) -> None:
        """Put a task behind the others of its address."""
        self._addresses.setdefault(address, OrderedDict())[task] = None

    def remove(self, address: str, task: trio.lowlevel.Task) -> None:
        """Take out a task that waits no more."""
        tasks = self._addresses[address]
        del tasks[task]
        if not tasks:
            del self._addresses[address]

    def pop(self) -> trio.lowlevel.Task | None:
        """Take out the first task of the address whose turn is longest ago; None if it is empty."""
        if not self._addresses:
            return None
        address, tasks = next(iter(self._addresses.items()))
        task, _none = tasks.popitem(last=False)
        if tasks:
            self._addresses.move_to_end(address)
        else:
            del self._addresses[address]
        return task


class Starts:
    """The two lines of one server. Owned by its `Handover`; needs no end."""

    def __init__(self) -> None:
        self._first, self._later = _Line(), _Line()
        self._turn = False  # whose the next turn is: of `_first`, or of `_later`
        self._moving = False

    async def next(self, address: str, *, first: bool) -> None:
        """Wait until a request of this address may begin; `first` names the line.

        No deadline: each pass serves one of the lines, and nothing in them waits for a peer.
        Cancelled, the caller leaves the line.
        """
        if not self._moving:
            self._moving = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._wake_one()
            return
        line = self._first if first else self._later
        task = trio.lowlevel.current_task()
        line.add(address, task)

        def leave(_raise_cancel: object) -> trio.lowlevel.Abort:
            line.remove(address, task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        self._wake_one()

    def _wake_one(self) -> None:
        """Let one request begin in the next pass, of both lines in turns."""
        lines = (self._first, self._later)
        task = lines[self._turn].pop() or lines[not self._turn].pop()
        self._turn = not self._turn
        self._moving = task is not None
        if task is not None:
            trio.lowlevel.reschedule(task)


class ConnectionStarts:
    """The requests of one connection. Owned by its `Link`."""

    def __init__(self, starts: Starts, connection: OpenConnection | None) -> None:
        """Take the accepted connection; None is one whose caller is known."""
        self._starts = starts
        self._connection = connection
        self._begun = False

    async def next(self) -> None:
        """As `Starts.next`, for a request of this connection."""
        connection = self._connection
        known = connection is None or connection.state == "known"
        first, self._begun = known or not self._begun, True
        await self._starts.next(self._address, first=first)

    async def later(self) -> None:
        """As `Starts.next`, for the end of a request that costs others as much as its beginning."""
        await self._starts.next(self._address, first=False)

    @property
    def _address(self) -> str:
        return "" if self._connection is None else self._connection.address
