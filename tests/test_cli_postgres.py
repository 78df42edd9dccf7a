"""`repeater postgres sql | migrate | grant`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result

from repeater.cli.main import main
from repeater.postgres.schema import schema_text
from tests.postgres_databases import empty_database, some_role

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    with empty_database(postgresql) as url:
        yield url


def run(*arguments: str, outbox: str | None = None) -> Result:
    env = {"REPEATER_OUTBOX": outbox}
    result = CliRunner().invoke(main, ["postgres", *arguments], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def done(*arguments: str, outbox: str | None = None) -> str:
    result = run(*arguments, outbox=outbox)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, outbox: str | None = None) -> str:
    """The one line of a command that fails."""
    result = run(*arguments, outbox=outbox)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").rstrip("\n")


def test_the_statements_are_those_that_migrate_runs(url: str) -> None:
    """For a migration of one's own: they can be run as they are printed."""
    assert done("sql") == schema_text()
    with psycopg.connect(url) as connection:
        connection.execute(done("sql"))
    assert done("migrate", "--url", url).endswith("is there already\n")


def test_a_database_is_set_up(url: str) -> None:
    """By the setting of the server, or by a URL; in three commands."""
    with some_role(url) as role:
        assert done("migrate", outbox=url) == "the schema repeater, version 1, is made\n"
        assert done("grant", role, outbox=url) == f"{role} may publish\n"
        assert done("grant", role, "--server", "--url", url) == (
            f"{role} may take what is published\n"
        )
        with psycopg.connect(url) as connection:
            connection.execute(f"SET ROLE {role}")
            connection.execute("SELECT repeater.publish('c', '1')")
            found = connection.execute("SELECT data FROM repeater.take(NULL, '{}', 9, 9, 9)")
            assert found.fetchall()[0] == ("1",)


def test_it_may_be_the_database_of_the_comments(url: str) -> None:
    """Whether they run or not: `serve --dev` is what says so, and it is another command."""
    there = {"REPEATER_COMMENTS_DATABASE_URL": url.replace("://", "+psycopg://")}
    made = CliRunner().invoke(main, ["postgres", "migrate"], env=there)
    assert made.stdout == "the schema repeater, version 1, is made\n"


def test_a_name_is_a_name(url: str) -> None:
    """Whatever characters it has, it is one role."""
    done("migrate", "--url", url)
    name = 'x"; DROP SCHEMA repeater CASCADE; --'
    assert refused("grant", name, "--url", url) == f'role "{name}" does not exist'


def test_everybody_is_no_role(url: str) -> None:
    """PostgreSQL would take this name for all roles."""
    done("migrate", "--url", url)
    assert refused("grant", "public", "--url", url) == "public is everybody: name a role"


def test_mistakes_are_one_line(url: str) -> None:
    """Which database; what it lacks; never its password."""
    assert refused("migrate") == "which database? Give --url, or set outbox"
    assert refused("grant", "ann", "--url", url).startswith("there is no schema repeater")
    line = refused("migrate", "--url", "postgresql://ann:hush@127.0.0.1:1/db")
    assert "Connection refused" in line
    assert "hush" not in line
    for url in ("mysql://ann:hush@x/db", "postgresql://ann:x@hush@x/db", "postgresql://a:hush/@x"):
        line = refused("migrate", outbox=url)
        assert "REPEATER_OUTBOX: must be postgresql://" in line
        assert "hush" not in line


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three need it: also to print the statements."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "repeater.postgres.schema")
    for arguments in (["sql"], ["migrate", "--url", "x"], ["grant", "ann", "--url", "x"]):
        assert refused(*arguments) == (
            "PostgreSQL's client is not installed: pip install 'repeater-server[postgres]'"
        )
