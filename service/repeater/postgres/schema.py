"""The schema `repeater`: its text and version, how it is made, and who may use it.

For people and their scripts, so everything here waits. The server never changes a schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final

import psycopg
from psycopg import sql

from repeater.postgres.url import url_parts

VERSION: Final = 1
"""What this server works with; `repeater.settings` has the one that is there."""

LOCK: Final = 1_380_274_245
"""The first number of every advisory lock of ours: "RPTE" in ASCII."""

_LEAST: Final = 14  # the first PostgreSQL with `idle_session_timeout`
_CONNECT: Final = 10  # seconds
_NOT_GRANTED: Final = "01007"  # the SQLSTATE of a grant that did nothing
_WAIT: Final = "10s"  # for a lock that somebody else holds, another migration for example

_PUBLISHING: Final = (
    "publish(text, jsonb, text, numeric, text, boolean, jsonb)",
    "publish_many(text[], jsonb[], boolean)",
    "publish_row()",
)
_SERVING: Final = (
    "take(pg_snapshot, bigint[], integer, bigint, integer, boolean)",
    "done(bigint[], bigint[], text[])",
    "state()",
    "remaining(text[])",
    "next_term(bigint)",
)

_Connection = psycopg.Connection[tuple[Any, ...]]


class SchemaError(Exception):
    """It cannot be done; the text is one line, without a password."""


def schema_text() -> str:
    """The statements that make the schema, for a database without it."""
    return files("repeater.postgres").joinpath("schema.sql").read_text(encoding="utf-8")


def migrate(url: str) -> bool:
    """Make the schema in the database at `url`, in one transaction; whether it was not there.

    Two at the same time wait for each other. Needs the right to make a schema.

    Raises:
        SchemaError: the database is too old, has a schema of another version, or refuses.
    """
    with _connected(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (LOCK,))
        found = _version(connection)
        if found == VERSION:
            return False
        if found is not None:
            text = f"the schema repeater has version {found}, and this program knows {VERSION}"
            raise SchemaError(f"{text}: use the one that made it, or a later one")
        connection.execute(schema_text())
        return True


def grant(url: str, role: str, *, server: bool = False) -> None:
    """Let a role publish, or with `server` let a server of this role take what is published.

    Whoever calls it owns the schema. A role that may publish can read nothing.

    Raises:
        SchemaError: there is no such role or no schema, the caller does not own it, or the database
            refuses.
    """
    if role == "public":  # PostgreSQL takes it for everybody, quoted or not
        raise SchemaError("public is everybody: name a role")
    name = sql.Identifier(role)
    functions = [sql.SQL(f"repeater.{one}") for one in (_SERVING if server else _PUBLISHING)]
    with _connected(url) as connection:
        warnings: list[str | None] = []
        connection.add_notice_handler(lambda said: warnings.append(said.sqlstate))
        if _version(connection) is None:
            raise SchemaError("there is no schema repeater: run `repeater postgres migrate`")
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA repeater TO {}").format(name))
        connection.execute(
            sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(
                sql.SQL(", ").join(functions), name
            )
        )
        if server:
            connection.execute(sql.SQL("GRANT SELECT ON repeater.settings TO {}").format(name))
        # To who may use a function himself, but not grant it, PostgreSQL says so in a warning.
        if _NOT_GRANTED in warnings:
            raise SchemaError("only the owner of the schema repeater may grant it")


@contextmanager
def _connected(url: str) -> Iterator[_Connection]:
    """A transaction in a database that is not too old; its errors are a `SchemaError`."""
    try:
        url_parts(url)
    except ValueError as error:
        raise SchemaError(str(error)) from None
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT) as connection:
            if (major := connection.info.server_version // 10_000) < _LEAST:
                raise SchemaError(f"PostgreSQL {major} is too old: {_LEAST} or later is needed")
            # Who waits for the lock must then see what the other one has committed.
            connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (_WAIT,))
            yield connection
    except psycopg.Error as error:
        text = error.diag.message_primary or str(error).strip().partition("\n")[0]
        raise SchemaError(text) from None


def _version(connection: _Connection) -> int | None:
    """The version that is there; None without a schema.

    Raises:
        SchemaError: a schema of this name is there that is not ours, or not whole.
    """
    # A view would run functions of whoever made it, with the rights of whoever asks.
    asked = """
        SELECT to_regnamespace('repeater') IS NULL,
            EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('repeater.settings')
                AND relkind = 'r')
    """
    no_schema, are_settings = connection.execute(asked).fetchall()[0]
    if no_schema:
        return None
    if not are_settings:
        raise SchemaError("there is a schema repeater that is not Repeater's: it has no settings")
    rows = connection.execute("SELECT version FROM repeater.settings").fetchall()
    if not rows:
        text = "the schema repeater has empty settings, as a copy without its data has"
        raise SchemaError(f"{text}: drop it, and make it anew")
    return int(rows[0][0])
