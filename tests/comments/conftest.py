"""The databases that the application is tested on, its options, and a client for its routes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from repeater.comments.options import CommentsOptions


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind, for this test alone; the empty URL is SQLite's."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgresql")
    name = f"test_{os.urandom(6).hex()}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.replace("/postgres?", f"/{name}?")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def options(database_url: str, tmp_path: Path) -> CommentsOptions:
    """The application's options on that database."""
    return CommentsOptions(data_dir=tmp_path / "data", database_url=database_url)


@pytest.fixture
def sqlite_options(tmp_path: Path) -> CommentsOptions:
    """Where the kind of database makes no difference."""
    return CommentsOptions(data_dir=tmp_path / "data")
