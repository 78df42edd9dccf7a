"""The databases that the application is tested on, its options, and a client for its routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from repeater.comments.options import CommentsOptions
from tests.postgres_databases import publishing_database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind without tables, for this test alone; the empty URL is SQLite's.

    PostgreSQL has the schema by which transactions publish.
    """
    if request.param == "sqlite":
        yield ""
    else:
        yield request.getfixturevalue("publishing_url")


@pytest.fixture
def publishing_url(postgresql: str) -> Iterator[str]:
    """SQLAlchemy's URL of such a PostgreSQL, where SQLite makes no sense."""
    with publishing_database(postgresql) as url:
        yield url.replace("postgresql:", "postgresql+psycopg:", 1)


@pytest.fixture
def options(database_url: str, tmp_path: Path) -> CommentsOptions:
    """The application's options on that database."""
    return CommentsOptions(data_dir=tmp_path / "data", database_url=database_url)


@pytest.fixture
def sqlite_options(tmp_path: Path) -> CommentsOptions:
    """Where the kind of database makes no difference."""
    return CommentsOptions(data_dir=tmp_path / "data")
