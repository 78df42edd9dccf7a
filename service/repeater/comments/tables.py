"""The tables, and the engine that connects to them: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from repeater.comments.options import DATABASES, CommentsError, CommentsOptions

_TIMEOUT: Final = 5  # seconds for a connection, a lock or a statement
_WITH_DRIVER: Final = "repeater-server[comments,postgres]"
_Id: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates ids for Integer only

metadata: Final = MetaData()

users: Final = Table(
    "users",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),  # opaque; others see it
    Column("name", String(40), nullable=False),
    Column("email", String(254), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key", String(32), nullable=False, unique=True),  # what the signed cookie holds
    Column("user_id", _Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("expire_at", BigInteger, nullable=False),  # Unix time in seconds
    sqlite_autoincrement=True,
)

comments: Final = Table(
    "comments",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("user_id", _Id, ForeignKey("users.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("at", BigInteger, nullable=False),  # Unix time in milliseconds
    sqlite_autoincrement=True,
)

outbox: Final = Table(
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key", String(32), nullable=False),  # the announcement's idempotency key
    Column("data", Text, nullable=False),
    sqlite_autoincrement=True,
)


def make_engine(options: CommentsOptions) -> Engine:
    """An engine that connects when it is first used. Its errors never hold parameters.

    Raises:
        CommentsError: the URL is invalid, or its driver is not installed.
    """
    path = options.data_dir.absolute() / "comments.sqlite3"
    try:
        url = make_url(options.database_url or f"sqlite:///{path}")
        kind = url.get_backend_name()
        if kind not in DATABASES:
            raise CommentsError(f"the comments' database is PostgreSQL or SQLite, not {kind}")
        if url.drivername == "postgresql":  # SQLAlchemy's default driver is psycopg2
            url = url.set(drivername="postgresql+psycopg")
        postgresql = kind == "postgresql"
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=options.database_threads,
            max_overflow=0,
            pool_timeout=_TIMEOUT,
            pool_pre_ping=postgresql,  # a restart of the server costs a ping, not an error
            connect_args=_postgresql_arguments() if postgresql else {"timeout": _TIMEOUT},
        )
    except ArgumentError:
        raise CommentsError(
            "SQLAlchemy does not know the kind of the comments' database URL"
        ) from None
    except ValueError:  # a port that is not a number; the library's text may show the URL
        raise CommentsError("the comments' database URL has a part that is not valid") from None
    except ModuleNotFoundError as error:
        hint = f": pip install '{_WITH_DRIVER}'" if error.name == "psycopg" else ""
        raise CommentsError(f"the comments' database needs {error.name}{hint}") from None
    if not postgresql:
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _postgresql_arguments() -> dict[str, object]:
    milliseconds = _TIMEOUT * 1_000
    limits = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
    return {
        "connect_timeout": _TIMEOUT,
        "tcp_user_timeout": milliseconds,  # so that no commit arrives later
        "options": limits,
    }


def _prepare_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    """Set up a connection: readers do not wait for the writer (WAL), commits are on disk (FULL)."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
