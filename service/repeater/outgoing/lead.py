"""One lead: what this node does for as long as it is the one that takes what was published.

Three tasks share the session. One looks for rows, one has the engine publish them (`flight.py`),
one removes those that are published. They are bounded by the rows under way: `ROWS` and `SIZE`.
Rows wait in the table until there is room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.brokers.receipts import settled
from repeater.errors import BrokerError
from repeater.outgoing.flight import Finished, Flight
from repeater.outgoing.session import Refusal, interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from repeater.clients.contract import ClientNode
    from repeater.outgoing.session import Look, Session

ROWS: Final = 1_000
"""Rows under way at most, those included that the engine has yet to forget."""
SIZE: Final = 8_388_608
"""Bytes of their texts after which no row more is taken."""

_LOOK: Final = 128  # rows of one look at most: to read so many takes about 1 ms
_BUSY: Final = 0.025  # seconds between two looks, for 1 s after something came
_IDLE: Final = 0.2  # and then. The session must not be silent for 1.5 s, see `session.py`.
_BUSY_FOR: Final = 1.0
_AGAIN: Final = 10.0  # seconds between two looks at all rows: there must be none that was missed
_GATHER: Final = 0.02  # seconds in which finished rows gather, since removing them is a commit
_FORGET: Final = 1.0  # seconds until the engine is asked again to forget rows
_LONGEST: Final = 1_000  # characters of a channel in the log, and of a reason
_PATIENCE: Final = 5.0  # seconds of failures after which another node may have a better way
_LANDING: Final = 1.0  # seconds for what is under way at the end, and for the engine at the begin


class Counts(msgspec.Struct):
    """What this node has done so far, over all its leads."""

    moved: int = 0
    """Rows that were published and removed."""
    refused: int = 0
    """Rows that can never be published, and were put aside."""
    missed: int = 0
    """Rows that an earlier look had to give and did not. There are none, as far as we know."""


class Lead:
    """The work of the one node that leads. Lives as long as its session; see `run`."""

    def __init__(
        self,
        node: ClientNode,
        session: Session,
        *,
        source: str,
        largest: int,
        counts: Counts,
        ending: Callable[[], bool],
    ) -> None:
        """Take rows by a session that has the lock, and publish them by a node.

        Args:
            node: The node.
            session: A session with the database.
            source: The database's name in the engine.
            largest: Bytes of the data of one row; a larger one is refused.
            counts: Is added to.
            ending: Whether to take no more; the session's bell rings when that changes.
        """
        self._node = node
        self._session = session
        self._bell = session.bell
        self._source = source
        self._largest = largest
        self._counts = counts
        self._ending = ending
        self._flight = Flight(node, source, largest)
        self._seen: bytes | None = None
        self._came = trio.current_time()
        self._again_at = self._came + _AGAIN
        self._unforgotten: list[str] = []

    @property
    def under_way(self) -> int:
        """Rows that were taken and are not removed yet."""
        return len(self._flight)

    async def run(self) -> None:
        """Lead until that is to end, then finish what is under way within 1 s.

        No deadline: a node may lead for ever. Cancelled, what is under way stays in the table, and
        whoever leads next asks the engine for it by its names.

        Raises:
            LostError, RefusedError: as `Session`; another node may lead now.
            BrokerError: the engine is not available, by this node at least.
        """
        self._flight.term = await self._session.lead()
        await self._forget_gone()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flight.run)
            nursery.start_soon(self._remove)
            await self._look()
            with trio.move_on_after(_LANDING):
                await self._bell.wait_for(lambda: not self._flight)
            nursery.cancel_scope.cancel("the lead has ended")

    async def _forget_gone(self) -> None:
        """Have the engine forget rows of an earlier lead that are not in the table any more."""
        with trio.move_on_after(_LANDING):  # else the session is silent for too long
            known = await settled(self._node.broker.known_rows(self._source))
            remaining = await self._session.remaining(known) if known else set()
            gone = [name for name in known if name not in remaining]
            if gone:
                await settled(self._node.broker.forget_rows(self._source, gone))
            return
        raise BrokerError("the engine does not answer")

    async def _look(self) -> None:
        """Look for rows until the lead is to end."""
        while not self._ending():
            self._check_engine()
            if self._flight.deposed >= self._flight.term:
                # The lock is ours, but a failover of the database has taken its newest terms.
                self._flight.term = await self._session.next_term(self._flight.deposed)
            most = min(_LOOK, ROWS - len(self._flight) - len(self._unforgotten))
            size = SIZE - self._flight.size
            if most > 0 and size > 0:
                look = await self._look_once(most, size)
                if look.rows and look.seen is None:
                    continue  # There was more.
            else:
                await self._session.say_something()
            await self._pause()

    async def _look_once(self, most: int, size: int) -> Look:
        now = trio.current_time()
        again = self._seen is not None and now > self._again_at
        look = await self._session.take(
            self._seen,
            self._flight.ids(),
            most=most,
            size=size,
            largest=self._largest,
            again=again,
        )
        self._seen = look.seen
        if again:
            self._again_at = now + interval(_AGAIN, trio.current_time() - now)
            self._counts.missed += sum(row.missed for row in look.rows)
        if look.rows:
            self._came = now
            self._flight.add(look.rows)
        return look

    async def _pause(self) -> None:
        """Wait for the bell; but a bell may be missed, so not for long."""
        busy = trio.current_time() - self._came < _BUSY_FOR
        with trio.move_on_after(_BUSY if busy else _IDLE):
            await self._bell.wait()

    def _check_engine(self) -> None:
        """Leave the lead to others if the engine is away from here."""
        since = self._flight.failing_since
        if since is None or trio.current_time() - since < _PATIENCE:
            return
        if outage := self._node.broker.outage():
            raise BrokerError(outage)

    async def _remove(self) -> None:
        """Remove finished rows from the table, and then from the engine's memory."""
        while True:
            # No deadline: rows come for ever.
            with trio.move_on_after(_FORGET if self._unforgotten else float("inf")):
                await self._flight.wait_finished()
                await trio.sleep(_GATHER)
            if finished := self._flight.take_finished():
                await self._remove_from_table(finished)
            if self._unforgotten:
                await self._forget()

    async def _remove_from_table(self, finished: Sequence[Finished]) -> None:
        published = [one.row.id for one in finished if one.why is None]
        refused = [self._refusal(one) for one in finished if one.why is not None]
        await self._session.done(published, refused)
        self._flight.land(finished)
        self._unforgotten += [one.row.name for one in finished if one.why is None]
        self._counts.moved += len(published)
        self._counts.refused += len(refused)
        if self._seen is None or self._ending():
            self._bell.ring()  # There is room again, or nothing is under way.

    def _refusal(self, finished: Finished) -> Refusal:
        row, why = finished
        assert why is not None
        channel = row.channel[:_LONGEST]
        self._node.refusals.note(why, "publish by a transaction", channel=channel, row=row.id)
        return Refusal(row.id, " ".join(str(why).split())[:_LONGEST])

    async def _forget(self) -> None:
        names = self._unforgotten[:]
        try:
            await settled(self._node.broker.forget_rows(self._source, names))
        except BrokerError:
            self._node.broker_errors["forget_rows"] += 1
            await trio.sleep(_FORGET)
        else:
            del self._unforgotten[: len(names)]
