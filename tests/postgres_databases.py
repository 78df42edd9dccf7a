"""Databases of their own on the PostgreSQL of the tests, with the schema of what is published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg

from repeater.postgres.schema import schema_text


@contextmanager
def publishing_database(postgresql: str) -> Iterator[str]:
    """libpq's URL of an empty database with the schema, for the time of the block.

    `postgresql` is SQLAlchemy's URL of a server.
    """
    admin = postgresql.replace("+psycopg", "")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = admin.replace("/postgres?", f"/{name}?")
    try:
        with psycopg.connect(url) as connection:
            connection.execute(schema_text())
        yield url
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
