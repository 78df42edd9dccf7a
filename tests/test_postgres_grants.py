"""Who may do what with the schema `repeater`, and how it is made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from repeater.postgres import schema
from repeater.postgres.schema import SchemaError, grant, migrate
from tests.postgres_databases import empty_database, publishing_database, some_role

pytestmark = pytest.mark.timeout(60)

Connection = psycopg.Connection[tuple[Any, ...]]

PUBLISHING = (
    "SELECT repeater.publish('c', '1')",
    "SELECT repeater.publish(channel => 'c', data => '1', key => 'k', version => 1, tags => '{}')",
    "SELECT repeater.publish_many(ARRAY['c'], ARRAY['1'::jsonb])",
    "CREATE TRIGGER told AFTER INSERT ON pg_temp.mine FOR EACH ROW"
    " EXECUTE FUNCTION repeater.publish_row('mine:', 'id')",
)
SERVING = (
    "SELECT repeater.take(NULL, '{}', 1, 1, 1)",
    "SELECT repeater.done('{}', '{}', '{}')",
    "SELECT repeater.state()",
    "SELECT repeater.remaining('{}')",
    "SELECT repeater.next_term(0)",
    "SELECT * FROM repeater.settings",
)
NOBODYS = (
    "SELECT repeater.ring()",
    "SELECT * FROM repeater.outgoing",
    "INSERT INTO repeater.outgoing (channel, data) VALUES ('c', '1')",
    "DELETE FROM repeater.outgoing",
    "SELECT * FROM repeater.refused",
    "UPDATE repeater.settings SET version = 2",
    "SELECT nextval('repeater.term')",
    "SELECT setval('repeater.bell', 1)",
    "CREATE TABLE repeater.mine (id int)",
    "DROP SCHEMA repeater CASCADE",
)


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    with publishing_database(postgresql) as url:
        yield url


@pytest.fixture
def empty(postgresql: str) -> Iterator[str]:
    with empty_database(postgresql) as url:
        yield url


@pytest.fixture
def role(url: str) -> Iterator[str]:
    with some_role(url) as role:
        yield role


def may(url: str, role: str, statement: str) -> bool:
    """Whether a role may do this."""
    with psycopg.connect(url) as connection:
        connection.execute(f"SET ROLE {role}")
        connection.execute("CREATE TEMPORARY TABLE mine (id int)")
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return False
        finally:
            connection.rollback()
        return True


def test_a_role_that_publishes_can_do_nothing_else(url: str, role: str) -> None:
    """Not even read what it has published."""
    grant(url, role)
    assert [one for one in PUBLISHING if not may(url, role, one)] == []
    assert [one for one in (*SERVING, *NOBODYS) if may(url, role, one)] == []


def test_the_role_of_the_server_cannot_publish(url: str, role: str) -> None:
    """Nor change a table but by its functions."""
    grant(url, role, server=True)
    assert [one for one in SERVING if not may(url, role, one)] == []
    assert [one for one in (*PUBLISHING, *NOBODYS) if may(url, role, one)] == []


def test_a_role_without_a_grant_can_do_nothing(url: str, role: str) -> None:
    """The schema is nobody's but its owner's."""
    assert [one for one in (*PUBLISHING, *SERVING, *NOBODYS) if may(url, role, one)] == []


def test_a_grant_can_be_repeated(url: str, role: str) -> None:
    """Both may go to one role, in any order."""
    for server in (False, True, False, True):
        grant(url, role, server=server)
    assert [one for one in (*PUBLISHING, *SERVING) if not may(url, role, one)] == []


def test_only_the_owner_grants(url: str, role: str) -> None:
    """PostgreSQL only warns who may use a function but not grant it."""
    grant(url, role, server=True)
    with (
        some_role(url) as other,
        pytest.raises(SchemaError, match="only the owner of the schema repeater may"),
    ):
        grant(url.replace("postgres:@", f"{role}@"), other, server=True)


def test_a_trigger_runs_with_the_rights_of_who_writes(url: str, role: str) -> None:
    """A type may bring a function that makes JSON of it: the schema's owner must not run it."""
    grant(url, role)
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE SCHEMA mine AUTHORIZATION {role}")
        connection.execute(f"SET LOCAL SESSION AUTHORIZATION {role}")
        connection.execute(
            """
            CREATE TYPE mine.kind AS ENUM ('a');
            CREATE FUNCTION mine.who(mine.kind) RETURNS json
                RETURN to_json(current_user::text);
            CREATE CAST (mine.kind AS json) WITH FUNCTION mine.who;
            CREATE TABLE mine.orders (id int, kind mine.kind);
            CREATE TRIGGER told AFTER INSERT ON mine.orders
                FOR EACH ROW EXECUTE FUNCTION repeater.publish_row('orders:', 'id');
            INSERT INTO mine.orders VALUES (1, 'a');
            RESET SESSION AUTHORIZATION;
            """
        )
        found = connection.execute("SELECT data::jsonb -> 'row' ->> 'kind' FROM repeater.outgoing")
        assert found.fetchall() == [(role,)]
        connection.rollback()


def test_who_changes_a_table_with_the_trigger_may_publish(url: str, role: str) -> None:
    """Else the change fails, and says why."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int)")
        connection.execute(f"GRANT INSERT ON orders TO {role}")
        connection.execute(
            "CREATE TRIGGER told AFTER INSERT ON orders"
            " FOR EACH ROW EXECUTE FUNCTION repeater.publish_row('orders:', 'id')"
        )
    assert not may(url, role, "INSERT INTO public.orders VALUES (1)")
    grant(url, role)
    assert may(url, role, "INSERT INTO public.orders VALUES (1)")


def test_it_is_made_once(empty: str) -> None:
    """A second time does nothing, and says so."""
    assert migrate(empty)
    assert not migrate(empty)


@pytest.mark.parametrize("level", ["read committed", "serializable"])
def test_two_at_once_make_it_once(level: str, empty: str) -> None:
    """One waits for the other, and then sees what that one made, whatever level is the default."""
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_isolation = '{level}'"
        )
    made: list[bool] = []
    both = [threading.Thread(target=lambda: made.append(migrate(empty))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(made) == [False, True]


def test_a_view_is_not_read(empty: str) -> None:
    """It would run somebody's function with the rights of whoever makes the schema."""
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA repeater; CREATE VIEW repeater.settings AS SELECT 1 / 0")
    assert "is not Repeater's" in refusal("migrate", empty)


def refusal(call: str, url: str) -> str:
    with pytest.raises(SchemaError) as caught:
        migrate(url) if call == "migrate" else grant(url, "nobody_at_all")
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


def test_what_cannot_be_done_is_said_in_one_line(empty: str, url: str) -> None:
    """No schema, no such role, a schema of somebody else, another version, nobody there."""
    assert refusal("grant", empty) == (
        "there is no schema repeater: run `repeater postgres migrate`"
    )
    assert refusal("grant", url) == 'role "nobody_at_all" does not exist'
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA repeater")
    assert refusal("migrate", empty) == (
        "there is a schema repeater that is not Repeater's: it has no settings"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE repeater.settings SET version = 7")
    assert refusal("migrate", url) == (
        "the schema repeater has version 7, and this program knows 1:"
        " use the one that made it, or a later one"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM repeater.settings")
    assert refusal("migrate", url) == (
        "the schema repeater has empty settings, as a copy without its data has:"
        " drop it, and make it anew"
    )
    assert "Connection refused" in refusal("migrate", "postgresql://ann:secret@127.0.0.1:1/db")
    for wrong in ("postgresql://ann:secret@[", "postgresql://ann:x@secret@[", "host=\udcff"):
        assert refusal("migrate", wrong).startswith("the address is not one of PostgreSQL (")


def test_a_server_that_is_too_old_is_refused(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is made."""
    monkeypatch.setattr(schema, "_LEAST", 99)
    assert refusal("migrate", empty).endswith("is too old: 99 or later is needed")
    monkeypatch.undo()
    assert migrate(empty)
