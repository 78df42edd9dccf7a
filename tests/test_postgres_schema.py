"""What transactions publish, on a real PostgreSQL: who may, what is taken, what is removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from repeater.postgres.schema import VERSION, schema_text

pytestmark = pytest.mark.timeout(60)

Connection = psycopg.Connection[tuple[Any, ...]]
_TAKE = (
    "SELECT id, channel, data, size, key, version, now_seen"
    " FROM repeater.take(%s::pg_snapshot, %s::bigint[], %s, %s, %s)"
)


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    """An empty database of its own with the schema."""
    admin = postgresql.replace("+psycopg", "")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = admin.replace("/postgres?", f"/{name}?")
    with psycopg.connect(url) as connection:
        connection.execute(schema_text())
    yield url
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def server(url: str) -> Iterator[Connection]:
    """The server's session: each statement is a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def writer(url: str) -> Iterator[Connection]:
    """A program's session, with transactions."""
    with psycopg.connect(url) as connection:
        yield connection


def publish(connection: Connection, data: str, channel: str = "c") -> int:
    row = connection.execute("SELECT repeater.publish(%s, %s::jsonb)", (channel, data)).fetchone()
    assert row is not None
    return int(row[0])


class Taking:
    """Asks as the server does: with what it has seen."""

    def __init__(self, server: Connection) -> None:
        self._server = server
        self._seen: str | None = None

    def whole(self) -> bool:
        """Whether the last look gave all that there was."""
        return self._seen is not None

    def take(
        self,
        skip: list[int] | None = None,
        most: int = 100,
        size: int = 10_000,
        largest: int = 1_000,
    ) -> list[str | None]:
        """The data of the rows."""
        rows = self._server.execute(_TAKE, (self._seen, skip or [], most, size, largest)).fetchall()
        whole = bool(rows) and rows[-1][0] is None
        self._seen = rows.pop()[-1] if whole else None
        return [one[2] for one in rows]


@pytest.fixture
def taking(server: Connection) -> Taking:
    return Taking(server)


def test_the_version_is_that_of_this_server(server: Connection) -> None:
    """And the database has a name of its own, which no other one has."""
    found = server.execute("SELECT version, source IS NULL FROM repeater.settings").fetchall()
    assert found == [(VERSION, False)]


def test_a_publication_is_part_of_the_transaction(writer: Connection, taking: Taking) -> None:
    """It is taken after the commit, and never after a rollback, of a savepoint alone too."""
    publish(writer, "1")
    assert taking.take() == []
    writer.rollback()
    publish(writer, "2")
    writer.execute("SAVEPOINT here")
    publish(writer, "3")
    writer.execute("ROLLBACK TO here")
    writer.commit()
    assert taking.take() == ["2"]


def test_rows_are_taken_once(writer: Connection, taking: Taking) -> None:
    """What was visible at the last look does not come again, though nobody has removed it."""
    for data in "123":
        publish(writer, data)
        writer.commit()
        assert taking.take() == [data]
    assert taking.take() == []


def test_a_late_commit_is_not_missed(url: str, writer: Connection, taking: Taking) -> None:
    """A row with a lower number, and of an older transaction, that becomes visible later."""
    with psycopg.connect(url) as late:
        publish(late, "1")
        publish(writer, "2")
        writer.commit()
        assert taking.take() == ["2"]
        assert taking.take() == []
        late.commit()
    assert taking.take() == ["1"]


@pytest.mark.parametrize("column", ["id", "xid"])
def test_what_goes_by_numbers_misses_it(url: str, writer: Connection, column: str) -> None:
    """Who asks for greater numbers than the last one never sees the row that commits late."""
    ask = (
        f"SELECT {column}::text::bigint, data FROM repeater.outgoing"
        f" WHERE {column}::text::bigint > %s ORDER BY 1"
    )
    with psycopg.connect(url, autocommit=True) as server, psycopg.connect(url) as late:
        publish(late, "1")
        publish(writer, "2")
        writer.commit()
        last, data = server.execute(ask, (0,)).fetchall()[-1]
        assert data == "2"
        late.commit()
        assert server.execute(ask, (last,)).fetchall() == []


def test_a_bounded_look_goes_on_from_the_beginning(writer: Connection, taking: Taking) -> None:
    """Cut by number or bytes it says nothing of what it has seen; what is under way is skipped."""
    ids = [publish(writer, f'"{number}"') for number in range(5)]
    writer.commit()
    assert taking.take(most=2) == ['"0"', '"1"']
    assert not taking.whole()
    assert taking.take(skip=ids[:2], size=6) == ['"2"', '"3"']
    assert not taking.whole()
    assert taking.take(skip=ids[:4]) == ['"4"']
    assert taking.whole()
    assert taking.take() == []


def test_a_row_that_is_too_large_comes_without_its_data(writer: Connection, taking: Taking) -> None:
    """It can be refused by its size, and holds up no other."""
    publish(writer, '"%s"' % ("x" * 2_000))
    publish(writer, "1")
    writer.commit()
    assert taking.take() == [None, "1"]


def test_done_removes_and_refused_keeps(writer: Connection, server: Connection) -> None:
    """What is published is gone; what is refused is kept with the reason, cut."""
    first, second, third = publish(writer, "1"), publish(writer, '"%s"' % ("x" * 20_000)), 0
    third = publish(writer, "3")
    writer.commit()
    done = server.execute(
        "SELECT repeater.done(%s::bigint[], %s::bigint[], %s::text[])",
        ([first], [second], ["unknown namespace"]),
    ).fetchone()
    assert done == (2,)
    assert server.execute("SELECT id FROM repeater.outgoing").fetchall() == [(third,)]
    refused = server.execute("SELECT id, channel, length(data), reason FROM repeater.refused")
    assert refused.fetchall() == [(second, "c", 10_000, "unknown namespace")]


def test_what_was_refused_is_bounded(writer: Connection, server: Connection) -> None:
    """The newest 10,000 stay."""
    writer.execute("SELECT count(repeater.publish('c', '1')) FROM generate_series(1, 10050)")
    writer.commit()
    server.execute(
        "SELECT repeater.done('{}', array_agg(id), array_agg('no'::text)) FROM repeater.outgoing"
    )
    found = server.execute("SELECT count(*), min(id) FROM repeater.refused").fetchone()
    assert found == (10_000, 51)


def test_the_bell_rings_at_the_commit(server: Connection, writer: Connection) -> None:
    """Once for many, and not for a rollback."""
    server.execute("LISTEN repeater_outgoing")
    publish(writer, "1")
    writer.rollback()
    writer.execute("SELECT pg_sleep(0.02)")
    for _ in range(3):
        publish(writer, "1")
    assert list(server.notifies(timeout=0)) == []
    writer.commit()
    assert len(list(server.notifies(timeout=5, stop_after=1))) == 1


def test_nobody_may_without_a_grant(server: Connection, url: str) -> None:
    """Neither the functions nor the tables, until a role is named."""
    role = f"role_{uuid4().hex}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    server.execute(f"GRANT USAGE ON SCHEMA repeater TO {role}")
    try:
        with psycopg.connect(url, autocommit=True) as stranger:
            stranger.execute(f"SET ROLE {role}")
            for statement in (
                "SELECT repeater.publish('c', '1')",
                "SELECT repeater.take(NULL, '{}', 1, 1, 1)",
                "SELECT repeater.done('{}', '{}', '{}')",
                "SELECT * FROM repeater.outgoing",
                "SELECT nextval('repeater.term')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    stranger.execute(statement)
    finally:
        server.execute(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


def test_the_data_is_jsonb(writer: Connection, taking: Taking) -> None:
    """PostgreSQL's order and spelling, one of two equal keys; some texts it cannot keep at all."""
    publish(writer, '{"b": 1.0, "a": 1e2, "b": 2}')
    writer.commit()
    assert taking.take() == ['{"a": 100, "b": 2}']
    for data in (r'"\u0000"', r'"\ud800"'):
        with pytest.raises(psycopg.DataError):
            publish(writer, data)
        writer.rollback()
