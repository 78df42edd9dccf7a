"""The data that is kept across restarts: users, sessions, comments, and the outbox.

Rule: a comment and its announcement are written in one transaction, so that neither is stored
without the other, whenever the process ends. In SQLite the announcement is a row of the outbox.
In PostgreSQL it is Repeater's own: `repeater.publish` (docs/postgres.md).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, literal, select, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from repeater.comments.options import CHANNEL
from repeater.comments.tables import comments, metadata, outbox, sessions, users
from repeater.comments.threads import Workers
from repeater.postgres.errors import NO_SCHEMA

Result = TypeVar("Result")

# Seconds from the call until a comment is announced or given up. The cache is held for longer, so
# that a transaction which waited for its thread does not end when the cache is in use again.
_LATEST: Final = 15.0

_PUBLISH: Final = text("SELECT repeater.publish(:channel, CAST(:data AS jsonb))")
# The catalogs answer everybody: to name a function in a schema without rights is an error.
_MAY_PUBLISH: Final = text(
    "SELECT bool_or(has_schema_privilege(n.oid, 'USAGE') AND"
    " has_function_privilege(p.oid, 'EXECUTE')), current_user"
    " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    " WHERE n.nspname = 'repeater' AND p.proname = 'publish'"
)


class StoreError(Exception):
    """The database failed; the change may have happened or not."""


class UnknownCommitError(StoreError):
    """The database failed at the commit, which may still happen."""


class User(msgspec.Struct, frozen=True):
    """The part of a user that everybody may see."""

    uid: str
    name: str


class Comment(msgspec.Struct, frozen=True):
    """A comment as everybody may see it; `at` is the Unix time in milliseconds."""

    uid: str
    text: str
    id: int
    name: str
    at: int


class Announcement(msgspec.Struct, frozen=True):
    """One row of the outbox: the data to publish, and the key so that it is published only once."""

    id: int
    key: str
    data: bytes


class Store:
    """The database, for Trio. The caller that made the engine must dispose of it.

    Each method is one transaction in a worker thread, bounded by the engine's timeouts. A cancelled
    method still ends its transaction. All methods raise `StoreError` if the database fails, and
    `ProblemError` (503) if too many calls wait.
    """

    def __init__(self, engine: Engine, workers: Workers) -> None:
        self._engine = engine
        self._workers = workers

    @property
    def publishes(self) -> bool:
        """Whether the database announces comments by itself: PostgreSQL does."""
        return self._engine.dialect.name == "postgresql"

    async def create_tables(self) -> None:
        """Make the tables that are missing.

        A PostgreSQL must let this role publish already: otherwise that is a `StoreError` too.
        """
        if self.publishes:
            await self._run(self._check_publishing)
        await self._run(metadata.create_all, self._engine)

    async def add_user(self, email: str, name: str, password_hash: str) -> User | None:
        """Store and return a new user; None if the address has a user already."""
        return await self._run(self._add_user, email, name, password_hash)

    async def user(self, uid: str) -> User | None:
        """The user with this id; None if the user does not exist."""
        return await self._run(self._user, uid)

    async def add_session(self, uid: str, ttl: int, most: int) -> str:
        """Begin a session of the user for `ttl` seconds, and return its key.

        Above `most` sessions of the user, the oldest end.
        """
        return await self._run(self._add_session, uid, ttl, most)

    async def session_user(self, key: str) -> User | None:
        """The user of the session with this key; None if it has ended, or never was."""
        return await self._run(self._session_user, key)

    async def end_session(self, key: str) -> None:
        """End the session with this key, in every browser that has its cookie. Idempotent."""
        await self._run(self._end_session, key)

    async def credentials(self, email: str) -> tuple[str, str] | None:
        """The id and the password hash of the user with this address; None without a user."""
        return await self._run(self._credentials, email)

    async def add_comment(self, uid: str, text: str) -> Comment | None:
        """Store a comment and its announcement; None if the user does not exist.

        PostgreSQL may announce it before this returns.

        Raises:
            UnknownCommitError: it may be stored and announced after this.
        """
        return await self._run(self._add_comment, uid, text, time.monotonic() + _LATEST)

    async def comments(self, limit: int, before: int | None = None) -> list[Comment]:
        """The newest comments before the id (of all comments if None), newest last."""
        return await self._run(self._comments, limit, before)

    async def announcements(self, limit: int) -> list[Announcement]:
        """The announcements that are still to be published, oldest first."""
        return await self._run(self._announcements, limit)

    async def mark_announced(self, announcements: Sequence[Announcement]) -> None:
        """Delete the rows of published announcements. Idempotent."""
        await self._run(self._mark_announced, [row.id for row in announcements])

    async def _run(self, call: Callable[..., Result], *args: object) -> Result:
        """Make the call in a thread, and raise `StoreError` if the database fails."""
        # Other errors are faults of this code: they crash.
        try:
            return await self._workers.run(call, *args)
        except (OperationalError, InterfaceError) as error:
            raise StoreError(_first_line(error)) from error
        except PoolTimeoutError as error:
            raise StoreError("no database connection became free in time") from error

    def _add_user(self, email: str, name: str, password_hash: str) -> User | None:
        user = User(secrets.token_urlsafe(12), name)
        row = {"uid": user.uid, "name": name, "email": email, "password_hash": password_hash}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(users).values(row))
        except IntegrityError:
            return None  # Ids have 96 random bits, so the address is the duplicate.
        return user

    def _user(self, uid: str) -> User | None:
        query = select(users.c.uid, users.c.name).where(users.c.uid == uid)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else User(row.uid, row.name)

    def _add_session(self, uid: str, ttl: int, most: int) -> str:
        key = secrets.token_urlsafe(16)
        now = int(time.time())
        user = select(users.c.id).where(users.c.uid == uid).scalar_subquery()
        begin = select(literal(key), users.c.id, literal(now + ttl)).where(users.c.uid == uid)
        newest = (
            select(sessions.c.id)
            .where(sessions.c.user_id == user)
            .order_by(sessions.c.id.desc())
            .limit(most)
        )
        over = (sessions.c.expire_at <= now) | sessions.c.id.not_in(newest)
        with self._engine.begin() as connection:
            connection.execute(insert(sessions).from_select(["key", "user_id", "expire_at"], begin))
            connection.execute(delete(sessions).where(sessions.c.user_id == user, over))
        return key

    def _session_user(self, key: str) -> User | None:
        query = (
            select(users.c.uid, users.c.name)
            .join_from(sessions, users)
            .where(sessions.c.key == key, sessions.c.expire_at > int(time.time()))
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else User(row.uid, row.name)

    def _end_session(self, key: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(sessions).where(sessions.c.key == key))

    def _credentials(self, email: str) -> tuple[str, str] | None:
        query = select(users.c.uid, users.c.password_hash).where(users.c.email == email)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row.uid, row.password_hash)

    def _check_publishing(self) -> None:
        with self._engine.connect() as connection:
            may, role = connection.execute(_MAY_PUBLISH).one()
        if may is None:
            raise StoreError(NO_SCHEMA)
        if not may:
            raise StoreError(f"{role} may not publish: run `repeater postgres grant {role}`")

    def _add_comment(self, uid: str, text: str, latest: float) -> Comment | None:
        at = time.time_ns() // 1_000_000
        # One statement finds the user and writes the comment: in SQLite, a transaction that begins
        # with a read cannot wait for its turn to write.
        author = select(users.c.id, literal(text), literal(at)).where(users.c.uid == uid)
        add = insert(comments).from_select(["user_id", "text", "at"], author)
        with self._engine.connect() as connection:
            row = connection.execute(add.returning(comments.c.id)).one_or_none()
            if row is None:
                return None
            name = connection.execute(select(users.c.name).where(users.c.uid == uid)).scalar_one()
            comment = Comment(uid, text, row.id, name, at)
            self._announce(connection, msgspec.json.encode(comment).decode(), latest)
            try:
                connection.commit()
            except (OperationalError, InterfaceError) as error:
                raise UnknownCommitError(_first_line(error)) from error
        return comment

    def _announce(self, connection: Connection, data: str, latest: float) -> None:
        """Announce a comment when its transaction commits."""
        if not self.publishes:
            owed = {"key": secrets.token_hex(16), "data": data}
            connection.execute(insert(outbox).values(owed))
            return
        if time.monotonic() > latest:
            raise StoreError("the comment's transaction came too late")
        try:
            connection.execute(_PUBLISH, {"channel": CHANNEL, "data": data})
        except ProgrammingError as error:  # the schema, or the right to use it, has gone
            raise StoreError(_first_line(error)) from error

    def _comments(self, limit: int, before: int | None) -> list[Comment]:
        query = (
            select(users.c.uid, comments.c.text, comments.c.id, users.c.name, comments.c.at)
            .join_from(comments, users)
            .order_by(comments.c.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(comments.c.id < before)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Comment(*row) for row in reversed(rows)]

    def _announcements(self, limit: int) -> list[Announcement]:
        query = select(outbox.c.id, outbox.c.key, outbox.c.data).order_by(outbox.c.id).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Announcement(row.id, row.key, row.data.encode()) for row in rows]

    def _mark_announced(self, ids: list[int]) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


def _first_line(error: DBAPIError) -> str:
    """The first line of the driver's error, without SQL and values."""
    return str(error.orig).strip().partition("\n")[0] or type(error).__name__
