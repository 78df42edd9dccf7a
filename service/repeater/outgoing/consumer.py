"""Takes what transactions have published, for as long as a node runs: one session after another.

Every node runs one, and the database decides who leads. A database that is away is asked again
with growing pauses. Nothing else of the node waits for it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from repeater.clients.statistics import OutgoingStatistics
from repeater.errors import BrokerError, open_service_nursery
from repeater.log import get_logger
from repeater.outgoing.bell import Bell, ring_database
from repeater.outgoing.lead import Counts, Lead
from repeater.outgoing.session import ANSWER, Session, State, UnusableError, interval
from repeater.postgres.address import connect
from repeater.postgres.errors import LostError, RefusedError
from repeater.postgres.pipe import first_line

if TYPE_CHECKING:
    from repeater.node import Node

_log = get_logger("outgoing")

_CONNECT: Final = 2.0  # seconds for each address
_TRY: Final = 0.3  # seconds between two tries to lead: with the 1.5 of a silent one, 2 s in all
_STATE: Final = 10.0  # seconds between two questions for what waits
_OLD: Final = 10.0  # seconds for which a row waits before that is a warning
_FIRST_PAUSE: Final = 0.1  # seconds between two connections; doubles
_LONGEST_PAUSE: Final = 2.0
_LASTING: Final = 5.0  # seconds after which a session was no failure
_CLOSE: Final = 2.0  # seconds for the end of a lead; more than it takes itself


class Consumer:
    """Takes what transactions of one database publish. Made and ended by `open_outgoing`."""

    def __init__(self, node: Node, url: str, largest: int) -> None:
        """Publish by a node what is published in the database at `url`.

        The data of one publication has at most `largest` bytes.
        """
        self._node = node
        self._url = url
        self._largest = largest
        self._name = f"repeater/{node.control.me.name or node.id}"
        self._closing = False
        self._scope = trio.CancelScope()
        self._bell = Bell()
        self._counts = Counts()
        self._state = State()
        self._lead: Lead | None = None
        self._outage = "no connection yet"
        self._losses = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take rows until `close`; starts when the database was tried once.

        No deadline: it may be away for ever. Cancelled, rows under way stay in their table.

        Raises:
            UnusableError: the database cannot be used as it is. Only before it has started: later
                that is an outage.
        """
        started = False

        def ready() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        with self._scope:
            pause = _FIRST_PAUSE
            while not self._ends():
                began = trio.current_time()
                try:
                    await self._serve_once(ready)
                except* (LostError, RefusedError, UnusableError, BrokerError) as group:
                    if not started and (unusable := group.subgroup(UnusableError)) is not None:
                        raise UnusableError(first_line(unusable)) from None
                    self._note_outage(first_line(group))
                ready()
                if trio.current_time() - began > _LASTING:
                    pause = _FIRST_PAUSE
                if not self._ends():
                    await trio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
        ready()

    def close(self) -> None:
        """Take no more, and let `run` end: when what is under way is published, if this leads."""
        self._closing = True
        if self._lead is None:
            self._scope.cancel("the consumer is closed")
        else:
            self._bell.ring()

    def outage(self) -> str:
        """Why nothing can be taken by this node now, in a few words; empty if something can."""
        return self._outage

    def warnings(self) -> list[str]:
        """What somebody should look at, in a sentence each. Publishing by the API goes on."""
        found = []
        if self._outage:
            found.append(f"the database of outbox cannot be used: {self._outage}")
        elif (oldest := self._state.oldest) > _OLD:
            found.append(f"what a transaction published has waited for {oldest:.0f} s")
        return found

    def statistics(self) -> OutgoingStatistics:
        """A snapshot."""
        lead = self._lead
        return OutgoingStatistics(
            up=not self._outage,
            leading=lead is not None,
            under_way=lead.under_way if lead is not None else 0,
            rows=self._state.rows,
            oldest=self._state.oldest,
            snapshot=self._state.snapshot,
            moved=self._counts.moved,
            refused=self._counts.refused,
            missed=self._counts.missed,
            losses=self._losses,
            warnings=self.warnings(),
        )

    def _ends(self) -> bool:
        return self._closing or self._node.draining

    async def _serve_once(self, ready: Callable[[], None]) -> None:
        """Connect, wait to lead, and lead until the session ends."""
        self._bell = bell = Bell()
        pipe = await connect(self._url, self._name, lambda _channel: bell.ring(), timeout=_CONNECT)
        async with trio.open_nursery() as nursery:

            async def run_pipe() -> None:
                await pipe.run()
                bell.ring()  # Who waits for it asks, and is told of the loss.

            nursery.start_soon(run_pipe)
            session = Session(pipe, bell)
            source = await session.begin(self._ring)
            self._note_begin()
            ready()
            nursery.start_soon(self._watch, session)
            await self._lead_by(session, source)
            nursery.cancel_scope.cancel("the lead has ended")

    async def _ring(self) -> None:
        with trio.move_on_after(ANSWER):
            await ring_database(self._url, self._name, timeout=_CONNECT)

    async def _lead_by(self, session: Session, source: str) -> None:
        while not self._ends():
            if await session.try_lead():
                await self._lead_once(session, source)
                return
            await trio.sleep(_TRY)

    async def _lead_once(self, session: Session, source: str) -> None:
        self._lead = Lead(
            self._node,
            session,
            source=source,
            largest=self._largest,
            counts=self._counts,
            ending=self._ends,
        )
        _log.info("this node takes what transactions publish", source=source)
        try:
            await self._lead.run()
        finally:
            self._lead = None

    async def _watch(self, session: Session) -> None:
        """Ask for what waits, as long as the session lasts; no deadline for that reason."""
        while True:
            began = trio.current_time()
            self._state = await session.state()
            await trio.sleep(interval(_STATE, trio.current_time() - began))

    def _note_begin(self) -> None:
        if self._losses:
            _log.info("the database of outbox can be used again")
        self._outage = ""

    def _note_outage(self, why: str) -> None:
        if not self._ends() and why != self._outage:
            _log.warning("the database of outbox cannot be used", reason=why)
        self._losses += not self._outage
        self._outage = why


@asynccontextmanager
async def open_outgoing(node: Node, url: str, *, largest: int) -> AsyncIterator[Consumer]:
    """Publish by a node what transactions of a database publish, for as long as the block lasts.

    At the end what is under way is finished, within 2 s. A database that is away is no error.

    Args:
        node: The node, which outlives the block.
        url: Where the database is: a URL or a connection string of libpq.
        largest: Bytes of the data of one publication; a larger one is refused.

    Raises:
        UnusableError: the database has no schema, or another version of it, or no bell rings.
    """
    async with open_service_nursery() as nursery:
        consumer = Consumer(node, url, largest)
        ended = trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await consumer.run(task_status)
            ended.set()

        await nursery.start(run)
        node.outgoing = consumer.statistics
        try:
            yield consumer
        finally:
            consumer.close()
            with trio.move_on_after(_CLOSE, shield=True):
                await ended.wait()
            node.outgoing = None
