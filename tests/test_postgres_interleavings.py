"""Transactions that overlap: what is taken when, on both versions that are tested.

A look takes what is visible now and was not visible at the last look. Everything here is about the
moment at which a row becomes visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from random import Random
from typing import Any, Final

import psycopg
import pytest

from benchmarks.peers.postgresql import PostgreSQL, binaries
from tests.deadlines import PROCESS_STARTS
from tests.postgres_databases import publishing_database
from tests.postgres_servers import open_postgresql

pytestmark = [
    pytest.mark.slow,  # once is enough: nothing in it depends on the version of Python
    pytest.mark.timeout(3 * PROCESS_STARTS),
]

Connection = psycopg.Connection[tuple[Any, ...]]
_LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_WITHOUT_15: Final = pytest.mark.skipif(binaries(15) is None, reason="PostgreSQL 15 is missing")


@pytest.fixture(scope="module", params=[18, pytest.param(15, marks=_WITHOUT_15)])
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    with open_postgresql(request.param) as server:
        yield server


@pytest.fixture
def url(server: PostgreSQL) -> Iterator[str]:
    with publishing_database(server.url) as url:
        yield url


@pytest.fixture
def open_session(url: str) -> Iterator[Any]:
    """Opens sessions that end with the test."""
    with ExitStack() as stack:

        def session(level: str = "READ COMMITTED", *, autocommit: bool = False) -> Connection:
            made = stack.enter_context(psycopg.connect(url, autocommit=autocommit))
            if not autocommit:
                made.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")
                made.commit()
            return made

        yield session


def publish(connection: Connection, data: object, **more: bool) -> None:
    wake = "" if more.get("wake", True) else ", wake => false"
    asked = f"SELECT repeater.publish(%s, %s::jsonb{wake})"
    connection.execute(asked, ("c", str(data)))


class Taker:
    """Looks at the table as a node does that leads."""

    def __init__(self, session: Connection) -> None:
        self._session = session
        self.seen: str | None = None
        self.ids: list[int] = []
        """Of the last look."""

    def take(self, most: int = 1_000) -> list[int]:
        """The data of what is new."""
        rows = self._session.execute(
            "SELECT id, data, now_seen FROM repeater.take(%s::pg_snapshot, %s, %s, 1000000, 1000)",
            (self.seen, self.ids if self.seen is None else [], most),
        ).fetchall()
        whole = bool(rows) and rows[-1][0] is None
        self.seen = rows.pop()[2] if whole else None
        self.ids = [row[0] for row in rows]
        return [int(row[1]) for row in rows]

    def done(self) -> int:
        """Remove what the last look gave."""
        found = self._session.execute("SELECT repeater.done(%s, '{}', '{}')", (self.ids,))
        self.ids = []
        return int(found.fetchall()[0][0])


@pytest.fixture
def taker(open_session: Any) -> Taker:
    return Taker(open_session(autocommit=True))


@pytest.mark.parametrize("level", _LEVELS)
def test_a_late_commit_is_taken_whatever_its_level(
    level: str, open_session: Any, taker: Taker
) -> None:
    """Its number is lower than those that were taken, and its snapshot older."""
    late, other = open_session(level), open_session()
    late.execute("SELECT 1")  # its snapshot, where the level has one for the transaction
    publish(late, 1)
    for data in (2, 3):
        publish(other, data)
        other.commit()
        assert taker.take() == [data]
    publish(late, 4)
    late.commit()
    assert taker.take() == [1, 4]
    assert taker.take() == []


def test_a_prepared_transaction_is_taken_when_it_is_committed(
    open_session: Any, taker: Taker
) -> None:
    """Also by another session, and behind others; one that is rolled back never is."""
    first, other = open_session(), open_session(autocommit=True)
    for name, data in (("kept", 1), ("gone", 2)):
        publish(first, data, wake=False)
        first.execute(f"PREPARE TRANSACTION '{name}'")
        first.commit()
    publish(other, 3)
    assert taker.take() == [3]
    other.execute("ROLLBACK PREPARED 'gone'")
    assert taker.take() == []
    other.execute("COMMIT PREPARED 'kept'")
    assert taker.take() == [1]


def test_what_rings_cannot_be_prepared(open_session: Any) -> None:
    """PostgreSQL says so, and `wake => false` is the way."""
    session = open_session()
    session.execute("SELECT setval('repeater.bell', 0)")
    publish(session, 1)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
        session.execute("PREPARE TRANSACTION 'x'")


def test_publishing_fails_no_serializable_transaction(open_session: Any, taker: Taker) -> None:
    """Two that publish to one channel at once, with looks in between, are both committed."""
    one, other = open_session("SERIALIZABLE"), open_session("SERIALIZABLE")
    publish(one, 1)
    publish(other, 2)
    assert taker.take() == []
    publish(one, 3)
    one.commit()
    assert taker.take() == [1, 3]
    assert taker.done() == 2
    publish(other, 4)
    other.commit()
    assert taker.take() == [2, 4]


def test_opposite_orders_do_not_wait_for_each_other(open_session: Any, taker: Taker) -> None:
    """Two transactions, two channels: no lock is taken, so there is no deadlock."""
    one, other = open_session(), open_session()
    for session in (one, other):
        session.execute("SET LOCAL lock_timeout = '1s'")
    for session, channels in ((one, "ab"), (other, "ba")):
        session.execute("SELECT repeater.publish(%s, '1')", (channels[0],))
    for session, channels in ((one, "ab"), (other, "ba")):
        session.execute("SELECT repeater.publish(%s, '2')", (channels[1],))
    one.commit()
    other.commit()
    assert len(taker.take()) == 4


def test_two_that_take_get_the_same(open_session: Any, taker: Taker) -> None:
    """Nothing waits: the lead and the engine see to it that each row is published once."""
    other, writer = Taker(open_session(autocommit=True)), open_session()
    for data in (1, 2):
        publish(writer, data)
        writer.commit()
    assert taker.take() == [1, 2]
    assert other.take() == [1, 2]
    assert taker.done() == 2
    assert other.done() == 0
    publish(writer, 3)
    writer.commit()
    assert taker.take() == [3]
    assert other.take() == [3]


def test_who_is_killed_between_take_and_done_leaves_all(open_session: Any) -> None:
    """To take is to read: the next one finds the rows as they were."""
    writer, killer = open_session(), open_session(autocommit=True)
    session = open_session(autocommit=True)
    killed, following = Taker(session), Taker(killer)
    for data in (1, 2):
        publish(writer, data)
    writer.commit()
    assert killed.take() == [1, 2]
    killer.execute("SELECT pg_terminate_backend(%s)", (session.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        killed.done()
    assert following.take() == [1, 2]
    assert following.done() == 2


class World:
    """Sessions that publish, wait, roll back and prepare, by chance; and what they committed."""

    def __init__(self, rng: Random, sessions: list[Connection], admin: Connection) -> None:
        self._rng = rng
        self._sessions = sessions
        self._admin = admin
        self._open: dict[int, list[int]] = {}
        self._prepared: dict[str, list[int]] = {}
        self._numbers = iter(range(1, 1_000_000))
        self.committed: list[list[int]] = []
        """What each transaction published, in the order of the commits."""
        self.before: dict[int, int] = {}
        """How many commits there were when this was published: those come before it."""

    def step(self) -> None:
        """One thing that one session does."""
        number = self._rng.randrange(len(self._sessions))
        session = self._sessions[number]
        chance = self._rng.random()
        if number not in self._open or chance < 0.5:
            self._publish(number, session)
        elif chance < 0.75:
            session.commit()
            self.committed.append(self._open.pop(number))
        elif chance < 0.85:
            session.rollback()
            del self._open[number]
        elif chance < 0.93 and len(self._prepared) < 3:
            name = f"p{next(self._numbers)}"
            session.execute(f"PREPARE TRANSACTION '{name}'")
            session.commit()
            self._prepared[name] = self._open.pop(number)
        elif self._prepared:
            self.settle(self._rng.choice(list(self._prepared)))

    def settle(self, name: str) -> None:
        """Commit a prepared transaction."""
        self._admin.execute(f"COMMIT PREPARED '{name}'")
        self.committed.append(self._prepared.pop(name))

    def end(self) -> None:
        """Commit everything."""
        for name in list(self._prepared):
            self.settle(name)
        for number, published in self._open.items():
            self._sessions[number].commit()
            self.committed.append(published)
        self._open = {}

    def _publish(self, number: int, session: Connection) -> None:
        data = next(self._numbers)
        kept = self._rng.random() < 0.8
        session.execute("SAVEPOINT here")
        publish(session, data, wake=False)
        session.execute("RELEASE here" if kept else "ROLLBACK TO here")
        self._open.setdefault(number, [])
        if kept:
            self._open[number].append(data)
            self.before[data] = len(self.committed)


def _run(world: World, look: Any, rng: Random) -> list[int]:
    """The data that looks gave, in their order, while the world goes on."""
    found: list[int] = []
    for _ in range(300):
        world.step()
        if rng.random() < 0.4:
            found += look()
    world.end()
    for _ in range(1_000):
        if not (more := look()):
            break
        found += more
    return found


@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_committed_is_taken_once_and_causes_first(
    seed: int, open_session: Any, taker: Taker
) -> None:
    """All levels, savepoints, prepared transactions, and looks that are cut."""
    rng = Random(seed)
    sessions = [open_session(level) for level in _LEVELS for _ in range(2)]
    world = World(rng, sessions, open_session(autocommit=True))

    def look() -> list[int]:
        found = taker.take(most=rng.choice((3, 1_000)))
        taker.done()
        return found

    found = _run(world, look, rng)
    assert Counter(found) == Counter(chain(*world.committed))
    places = {data: place for place, data in enumerate(found)}
    for number, published in enumerate(world.committed):
        assert [places[data] for data in published] == sorted(places[data] for data in published)
        for data, before in world.before.items():
            if before > number and data in places and published:
                assert places[published[-1]] < places[data]


@pytest.mark.parametrize("column", ["id", "xid"])
def test_looks_for_greater_numbers_miss_something(column: str, open_session: Any) -> None:
    """By the row's number or by its transaction's: the same world, and rows are missing."""
    rng = Random(1)
    session = open_session(autocommit=True)
    world = World(rng, [open_session() for _ in range(6)], open_session(autocommit=True))
    last = 0

    def look() -> list[int]:
        nonlocal last
        rows = session.execute(
            f"SELECT {column}::text::bigint, data FROM repeater.outgoing"
            f" WHERE {column}::text::bigint > %s ORDER BY 1, id",
            (last,),
        ).fetchall()
        last = max([last, *(row[0] for row in rows)])
        return [int(row[1]) for row in rows]

    assert set(_run(world, look, rng)) < set(chain(*world.committed))


def test_the_sets_in_progress_are_part_of_what_was_seen(open_session: Any) -> None:
    """Without them, as with the highest number alone, what was open at the last look is missed."""
    session, late, writer = open_session(autocommit=True), open_session(), open_session()
    publish(late, 1)
    publish(writer, 2)
    writer.commit()
    seen = session.execute("SELECT pg_current_snapshot()::text").fetchall()[0][0]
    late.commit()
    highest = seen.split(":")[1]
    asked = "SELECT data FROM repeater.take(%s::pg_snapshot, NULL, 9, 999, 999) WHERE id > 0"
    assert session.execute(asked, (seen,)).fetchall() == [("1",)]
    assert session.execute(asked, (f"{highest}:{highest}:",)).fetchall() == []
