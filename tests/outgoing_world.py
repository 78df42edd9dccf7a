"""A table of what was published, and a broker that fails, both without a database and a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, cast

import trio

from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer
from repeater.brokers.source_rows import SourceRow
from repeater.clients.contract import ClientNode
from repeater.errors import BrokerError
from repeater.options import ChannelOptions
from repeater.outgoing.bell import Bell
from repeater.outgoing.lead import Counts, Lead
from repeater.outgoing.rows import OutgoingRow
from repeater.outgoing.session import Look, Refusal, Session, State
from repeater.postgres.errors import LostError
from repeater.postgres.pipe import Pipe
from repeater.publication import Publication
from tests.brokers import LateBroker

SOURCE: Final = "the database"
LARGEST: Final = 1_000

Fate = Literal["taken", "failed", "unknown", "down", "full"]
"""What becomes of a submission: published and answered; not published; published and not answered;
not even sent; or there is no room for it just then."""


class Table:
    """The table, with all that was ever committed. Outlives its sessions."""

    def __init__(self) -> None:
        self.committed: list[OutgoingRow] = []
        """In the order in which the rows became visible."""
        self.there: dict[int, OutgoingRow] = {}
        self.refused: dict[int, str] = {}
        self.asked: Counter[str] = Counter()
        """How often each method was called."""
        self.term = 0
        self._bells: list[Bell] = []
        self._last = 0

    def new(self, channel: str, /, *, data: str = "", **more: object) -> OutgoingRow:
        """A row that no transaction has committed yet; the data is its number by default."""
        self._last += 1
        text = (data or str(self._last)).encode()
        fields: dict[str, object] = {
            "key": "",
            "version": None,
            "version_epoch": "",
            "tags": None,
            "missed": False,
        }
        return OutgoingRow(
            id=self._last,
            name=f"{self._last}-0",
            channel=channel,
            size=len(text),
            data=text,
            **(fields | more),  # type: ignore[arg-type]
        )

    def commit(self, *rows: OutgoingRow, ring: bool = True) -> None:
        """Rows become visible."""
        self.committed += rows
        self.there |= {row.id: row for row in rows}
        if ring:
            for bell in self._bells:
                bell.ring()

    def session(self) -> FakeSession:
        """A session that has the lock."""
        bell = Bell()
        self._bells.append(bell)
        return FakeSession(self, bell)


class FakeSession(Session):
    """Answers as `repeater.take` and the others do. `lose` ends it."""

    def __init__(self, table: Table, bell: Bell) -> None:
        super().__init__(cast("Pipe", None), bell)
        self._table = table
        self.lost = False
        self.slow = 0.0
        """Seconds of a look at all rows that were seen before."""
        self.when_done: Callable[[], None] = lambda: None
        """Called when rows are removed, before that is answered."""

    def lose(self) -> None:
        """The session ends: what is asked of it fails."""
        self.lost = True
        self.bell.ring()

    async def _asked(self, what: str) -> None:
        self._table.asked[what] += 1
        await trio.lowlevel.checkpoint()
        if self.lost:
            raise LostError("the session has ended")

    async def lead(self) -> int:
        return await self.next_term(0)

    async def next_term(self, above: int) -> int:
        await self._asked("next_term")
        self._table.term = max(self._table.term, above) + 1
        return self._table.term

    async def remaining(self, names: Sequence[str]) -> set[str]:
        await self._asked("remaining")
        return {row.name for row in self._table.there.values()} & set(names)

    async def take(
        self,
        seen: bytes | None,
        skip: Sequence[int],
        *,
        most: int,
        size: int,
        largest: int,
        again: bool = False,
    ) -> Look:
        await self._asked("again" if again else "take")
        if again:
            await trio.sleep(self.slow)
        table = self._table
        whole = seen is None or again
        found = table.committed if whole else table.committed[int(cast("bytes", seen)) :]
        left_out = set(skip) if whole else set()
        rows = sorted(
            (row for row in found if row.id in table.there and row.id not in left_out),
            key=lambda row: row.id,
        )
        given: list[OutgoingRow] = []
        for row in rows:
            if len(given) == most or sum(one.size for one in given) >= size:
                return Look(given, None)
            given.append(row)
        return Look(given, b"%d" % len(table.committed))

    async def done(self, published: Sequence[int], refused: Sequence[Refusal]) -> int:
        await self._asked("done")
        ids = [*published, *(one.id for one in refused)]
        self._table.refused |= dict(refused)
        found = [one for one in ids if self._table.there.pop(one, None) is not None]
        self.when_done()
        await self._asked("done")  # The answer may be lost, too.
        return len(found)

    async def say_something(self) -> None:
        await self._asked("something")

    async def state(self) -> State:
        await self._asked("state")
        return State(rows=len(self._table.there))


class FaultyBroker(LateBroker):
    """Answers later; `fate` says what becomes of each submission of a row."""

    def __init__(self, fate: Callable[[Publication], Fate] = lambda _: "taken") -> None:
        super().__init__()
        self.fate = fate
        self.sent: list[tuple[str, str]] = []
        """Channel and data of each row that was sent, the repeated ones too."""

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        fate = self.fate(publication)
        if fate == "down":
            raise BrokerError("the engine is down")
        if fate == "full":
            raise trio.WouldBlock
        self._check_open()
        self.sent.append((publication.channel, publication.data.decode()))

        async def call() -> Outcome:
            if fate == "failed":
                raise BrokerError("not published")
            await self.memory.wait_room()
            outcome = self.memory.submit(
                publication, options, idempotency_key=idempotency_key, row=row
            )
            if fate == "unknown":
                raise BrokerError("no answer")
            return outcome

        return self._calls.later(call)


def lead_of(node: ClientNode, session: Session, counts: Counts | None = None) -> Lead:
    """A lead that ends when the node shuts down."""
    return Lead(
        node,
        session,
        source=SOURCE,
        largest=LARGEST,
        counts=counts if counts is not None else Counts(),
        ending=lambda: node.draining,
    )


@asynccontextmanager
async def leading(
    node: ClientNode, table: Table, counts: Counts | None = None
) -> AsyncIterator[FakeSession]:
    """Lead for the time of the block, or until its session is lost."""
    session = table.session()
    lead = lead_of(node, session, counts)

    async def run() -> None:
        try:
            await lead.run()
        except* LostError:
            assert session.lost

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield session
        nursery.cancel_scope.cancel()
