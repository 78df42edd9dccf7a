"""Databases of their own on the PostgreSQL of the tests, with the schema of what is published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg

from repeater.postgres.schema import migrate


@contextmanager
def empty_database(postgresql: str) -> Iterator[str]:
    """libpq's URL of an empty database, for the time of the block.

    `postgresql` is SQLAlchemy's URL of a server.
    """
    admin = postgresql.replace("+psycopg", "")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = admin.replace("/postgres?", f"/{name}?")
    try:
        yield url
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def publishing_database(postgresql: str) -> Iterator[str]:
    """As `empty_database`, with the schema of what transactions publish."""
    with empty_database(postgresql) as url:
        migrate(url)
        yield url


@contextmanager
def some_role(url: str) -> Iterator[str]:
    """A role that may connect and nothing else, for the time of the block."""
    role = f"role_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        yield role
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
