"""What transactions publish, on a real PostgreSQL: who may, what is taken, what is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from repeater.postgres.schema import VERSION
from tests.postgres_databases import publishing_database, some_role

pytestmark = pytest.mark.timeout(60)

Connection = psycopg.Connection[tuple[Any, ...]]
_TAKE = (
    "SELECT id, channel, data, size, key, version, now_seen"
    " FROM repeater.take(%s::pg_snapshot, %s::bigint[], %s, %s, %s)"
)


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    """An empty database of its own with the schema."""
    with publishing_database(postgresql) as url:
        yield url


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


def test_every_text_of_a_row_is_counted(writer: Connection, server: Connection) -> None:
    """A channel, a key or tags without end are not read either; what is put aside is cut."""
    long = "x" * 5_000
    ask = "SELECT repeater.publish(%s, '1', key => %s, version_epoch => %s, tags => %s::jsonb)"
    writer.execute(ask, (long, None, None, None))
    writer.execute(ask, ("c", long, None, None))
    writer.execute(ask, ("c", None, long, None))
    writer.execute(ask, ("c", None, None, json.dumps({"t": long})))
    writer.execute(ask, ("c", "k", "e", '{"t": "x"}'))
    writer.commit()
    rows = server.execute(
        "SELECT id, length(channel), data, size > 5000, key, version_epoch, tags"
        " FROM repeater.take(NULL, '{}', 9, 100000, 1000) WHERE id IS NOT NULL"
    ).fetchall()
    assert [row[1:] for row in rows] == [
        (300, None, True, None, None, None),
        *[(1, None, True, None, None, None)] * 3,
        (1, "1", False, "k", "e", '{"t": "x"}'),
    ]
    ids = [row[0] for row in rows]
    server.execute("SELECT repeater.done('{}', %s, %s)", (ids, ["no"] * len(ids)))
    longest = "SELECT max(length(channel)), max(length(key)) FROM repeater.refused"
    assert server.execute(longest).fetchone() == (1_000, 1_000)


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
    with some_role(url) as role:
        server.execute(f"GRANT USAGE ON SCHEMA repeater TO {role}")
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


def test_the_data_is_jsonb(writer: Connection, taking: Taking) -> None:
    """PostgreSQL's order and spelling, one of two equal keys; some texts it cannot keep at all."""
    publish(writer, '{"b": 1.0, "a": 1e2, "b": 2}')
    writer.commit()
    assert taking.take() == ['{"a": 100, "b": 2}']
    for data in (r'"\u0000"', r'"\ud800"'):
        with pytest.raises(psycopg.DataError):
            publish(writer, data)
        writer.rollback()


def test_several_are_published_in_their_order(writer: Connection, taking: Taking) -> None:
    """In one statement, each with a number; as many channels as data, and none is nothing."""
    ask = "SELECT repeater.publish_many(%s::text[], %s::jsonb[])"
    found = writer.execute(ask, (["b", "a", "b"], ["1", "2", "3"])).fetchone()
    assert found is not None
    assert sorted(found[0]) == found[0]
    assert len(found[0]) == 3
    assert writer.execute(ask, ([], [])).fetchone() == ([],)
    writer.commit()
    assert taking.take() == ["1", "2", "3"]
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        writer.execute(ask, (["a"], []))


@pytest.mark.parametrize("moment", ["BEFORE", "AFTER"])
def test_a_trigger_publishes_rows(writer: Connection, server: Connection, moment: str) -> None:
    """Each row that is written, to the channel of its column; what is written stays as it is."""
    server.execute("CREATE TABLE orders (id int, state text)")
    server.execute(
        f"CREATE TRIGGER told {moment} INSERT OR UPDATE OR DELETE ON orders"
        " FOR EACH ROW EXECUTE FUNCTION repeater.publish_row('orders:', 'id')"
    )
    writer.execute("INSERT INTO orders VALUES (1, 'new'), (2, 'new')")
    writer.execute("UPDATE orders SET state = 'paid' WHERE id = 1")
    writer.execute("DELETE FROM orders WHERE id = 2")
    assert writer.execute("SELECT * FROM orders").fetchall() == [(1, "paid")]
    writer.commit()
    found = server.execute("SELECT channel, data::jsonb FROM repeater.outgoing ORDER BY id")
    assert found.fetchall() == [
        ("orders:1", {"operation": "INSERT", "row": {"id": 1, "state": "new"}}),
        ("orders:2", {"operation": "INSERT", "row": {"id": 2, "state": "new"}}),
        ("orders:1", {"operation": "UPDATE", "row": {"id": 1, "state": "paid"}}),
        ("orders:2", {"operation": "DELETE", "row": {"id": 2, "state": "new"}}),
    ]


@pytest.mark.parametrize(
    ("each", "given", "why"),
    [
        ("ROW", "'orders:'", "a prefix and the name of a column"),
        ("STATEMENT", "'orders:', 'id'", "FOR EACH ROW"),
        ("ROW", "'orders:', 'other'", "no value in the column other"),
    ],
)
def test_a_wrong_trigger_is_explained(server: Connection, each: str, given: str, why: str) -> None:
    """At the first row: the statement fails."""
    server.execute("CREATE TABLE orders (id int)")
    server.execute(
        f"CREATE TRIGGER told AFTER INSERT ON orders"
        f" FOR EACH {each} EXECUTE FUNCTION repeater.publish_row({given})"
    )
    with pytest.raises(psycopg.errors.TriggerProtocolViolated, match=why):
        server.execute("INSERT INTO orders VALUES (1)")


def test_a_channel_has_a_name(writer: Connection) -> None:
    """An empty one, no data or no channel fails the statement that publishes."""
    for channel, data in (("", "1"), (None, "1"), ("c", None)):
        with pytest.raises(psycopg.errors.IntegrityError):
            writer.execute("SELECT repeater.publish(%s, %s::jsonb)", (channel, data))
        writer.rollback()


def test_each_term_is_higher(server: Connection) -> None:
    """Than the last one and than the one that is named, and near the clock's microseconds."""
    ask = "SELECT repeater.next_term(%s)"
    terms = [server.execute(ask, (0,)).fetchone() for _ in range(2)]
    assert terms[0] is not None
    assert terms[1] is not None
    assert terms[0][0] < terms[1][0] < 2**53
    assert server.execute(ask, (2**52,)).fetchone() == (2**52 + 1,)
    assert server.execute(ask, (0,)).fetchone() == (2**52 + 2,)


def test_the_names_of_rows_that_are_gone(writer: Connection, server: Connection) -> None:
    """A name is number and moment: a number that is given again is another row."""
    publish(writer, "1")
    writer.commit()
    found = server.execute("SELECT id, at_us FROM repeater.take(NULL, '{}', 9, 9, 9)").fetchone()
    assert found is not None
    name = f"{found[0]}-{found[1]}"
    names = [name, f"{found[0]}-{found[1] - 1}", f"{found[0] + 1}-{found[1]}"]
    assert server.execute("SELECT repeater.remaining(%s)", (names,)).fetchone() == ([name],)
    assert server.execute("SELECT repeater.remaining(%s)", (names[1:],)).fetchone() == ([],)


def test_the_state_is_for_people(url: str, writer: Connection, server: Connection) -> None:
    """How many rows wait and for how long, and the snapshot that keeps dead rows alive."""
    ask = "SELECT oldest_seconds, waiting, snapshot_seconds FROM repeater.state()"
    assert server.execute(ask).fetchone() == (None, 0, None)
    publish(writer, "1")
    publish(writer, "2")
    writer.commit()
    with psycopg.connect(url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        found = server.execute(ask).fetchone()
    assert found is not None
    assert found[0] > 0
    assert found[1] == 2
    assert found[2] > 0


def test_what_was_missed_is_marked(writer: Connection, server: Connection) -> None:
    """Who looks again at all is told which rows an earlier look must have given."""
    publish(writer, "1")
    writer.commit()
    seen = server.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert seen is not None
    publish(writer, "2")
    writer.commit()
    ask = "SELECT data, missed FROM repeater.take(%s::pg_snapshot, '{}', 9, 9, 9, again => true)"
    found = server.execute(ask, (seen[0],)).fetchall()
    assert found == [("1", True), ("2", False), (None, None)]
