"""The store on SQLite and on PostgreSQL: the same facts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from sqlalchemy import Connection, event, text

from repeater.comments.options import CommentsError, CommentsOptions
from repeater.comments.store import Comment, Store, StoreError, UnknownCommitError
from repeater.comments.tables import make_engine
from repeater.comments.threads import Workers


@asynccontextmanager
async def open_store(options: CommentsOptions) -> AsyncIterator[Store]:
    options.data_dir.mkdir(exist_ok=True)
    engine = make_engine(options)
    try:
        store = Store(engine, Workers(options.database_threads, 100))
        await store.create_tables()
        yield store
    finally:
        engine.dispose()


async def add_user(store: Store, name: str = "Ann") -> str:
    user = await store.add_user(f"{name.lower()}@example.com", name, "hash")
    assert user is not None
    return user.uid


async def test_an_address_has_one_user(options: CommentsOptions) -> None:
    """The second user of an address is refused, and the first one's password stays."""
    async with open_store(options) as store:
        first = await store.add_user("a@example.com", "Ann", "hash one")
        assert await store.add_user("a@example.com", "Bob", "hash two") is None
        assert first is not None
        assert await store.credentials("a@example.com") == (first.uid, "hash one")
        assert await store.credentials("b@example.com") is None
        assert await store.user(first.uid) == first
        assert await store.user("nobody") is None


async def test_comments_come_newest_last_and_page_by_page(options: CommentsOptions) -> None:
    """`limit` takes from the newest; `before` goes on where a page began; text is verbatim."""
    async with open_store(options) as store:
        uid = await add_user(store)
        texts = ["<b>one</b>", "zwei \U0001f642", "three'; --", "four\nlines"]
        for text in texts:
            await store.add_comment(uid, text)
        newest = await store.comments(2)
        assert [comment.text for comment in newest] == texts[2:]
        assert [c.text for c in await store.comments(9, before=newest[0].id)] == texts[:2]
        assert {(comment.uid, comment.name) for comment in newest} == {(uid, "Ann")}


def owed(store: Store) -> list[Comment]:
    """What is still to be announced: rows of the outbox, or what transactions have published."""
    query = "SELECT data FROM outbox ORDER BY id"
    if store.publishes:
        query = "SELECT data FROM repeater.outgoing WHERE channel = 'comments' ORDER BY id"
    with store._engine.connect() as connection:
        found = connection.execute(text(query)).scalars().all()
    return [msgspec.json.decode(data, type=Comment) for data in found]


async def test_each_comment_owes_one_announcement(options: CommentsOptions) -> None:
    """It is the comment, as everybody may see it."""
    async with open_store(options) as store:
        uid = await add_user(store)
        texts = ["one", "zwei \U0001f642", 'a \\u0000 " that is no escape']
        comments = [await store.add_comment(uid, text) for text in texts]
        assert owed(store) == comments
        if store.publishes:
            assert await store.announcements(10) == []


async def test_an_announcement_is_there_until_it_is_done(sqlite_options: CommentsOptions) -> None:
    """The row of the outbox has a key of its own. PostgreSQL's rows are Repeater's."""
    async with open_store(sqlite_options) as store:
        uid = await add_user(store)
        comments = [await store.add_comment(uid, text) for text in ("one", "two", "three")]
        rows = await store.announcements(10)
        assert owed(store) == comments
        assert len({row.key for row in rows}) == 3
        await store.mark_announced(rows[:2])
        await store.mark_announced(rows[:2])
        assert await store.announcements(10) == rows[2:]


async def test_nobody_else_may_comment(options: CommentsOptions) -> None:
    """An id of no user stores neither a comment nor an announcement."""
    async with open_store(options) as store:
        assert await store.add_comment("nobody", "text") is None
        assert await store.comments(10) == []
        assert owed(store) == []


async def test_no_comment_without_its_announcement(options: CommentsOptions) -> None:
    """A transaction that fails at the announcement leaves no comment behind."""
    async with open_store(options) as store:
        uid = await add_user(store)

        def fail(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
            if statement.startswith(("INSERT INTO outbox", "SELECT repeater.publish")):
                raise RuntimeError("the process dies here")

        event.listen(store._engine, "before_cursor_execute", fail)
        with pytest.raises(RuntimeError):
            await store.add_comment(uid, "text")
        event.remove(store._engine, "before_cursor_execute", fail)
        assert await store.comments(10) == []


async def test_a_transaction_that_comes_too_late_is_given_up(
    publishing_url: str, tmp_path: Path
) -> None:
    """The cache is not held for ever: what would be announced after that is not stored."""
    options = CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)
    async with open_store(options) as store:
        uid = await add_user(store)
        with pytest.raises(StoreError, match="too late"):
            await store._run(store._add_comment, uid, "text", time.monotonic() - 1)
        assert await store.comments(10) == []
        assert owed(store) == []


async def test_a_commit_that_fails_may_still_happen(publishing_url: str, tmp_path: Path) -> None:
    """A session that ends at the commit is told apart from one that ends before."""
    options = CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)
    async with open_store(options) as store:
        uid = await add_user(store)
        end = text("SELECT pg_terminate_backend(:pid, 10000)")  # waits until it has ended

        def end_session(connection: Connection) -> None:
            (pid,) = connection.execute(text("SELECT pg_backend_pid()")).one()
            with store._engine.connect() as other:
                other.execute(end, {"pid": pid})

        event.listen(store._engine, "commit", end_session)
        with pytest.raises(UnknownCommitError):
            await store.add_comment(uid, "text")
        event.remove(store._engine, "commit", end_session)

        def end_before(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("SELECT repeater.publish"):
                end_session(connection)

        event.listen(store._engine, "before_cursor_execute", end_before)
        with pytest.raises(StoreError) as caught:
            await store.add_comment(uid, "text")
        event.remove(store._engine, "before_cursor_execute", end_before)
        assert not isinstance(caught.value, UnknownCommitError)
        assert await store.comments(10) == []


async def test_a_schema_that_has_gone_is_the_database_s_fault(
    publishing_url: str, tmp_path: Path
) -> None:
    """Somebody drops it under a running application: nothing is stored, and nothing crashes."""
    options = CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)
    async with open_store(options) as store:
        uid = await add_user(store)
        with store._engine.begin() as connection:
            connection.execute(text("DROP SCHEMA repeater CASCADE"))
        with pytest.raises(StoreError, match="repeater"):
            await store.add_comment(uid, "text")
        assert await store.comments(10) == []


async def test_many_write_at_once(options: CommentsOptions) -> None:
    """Forty concurrent comments are all stored, each with its announcement."""
    async with open_store(options) as store:
        uid = await add_user(store)
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(store.add_comment, uid, str(number))
        comments = await store.comments(100)
        assert {comment.text for comment in comments} == {str(number) for number in range(40)}
        assert len(owed(store)) == 40


async def test_what_is_stored_survives(options: CommentsOptions) -> None:
    """A second engine on the same database finds users and comments."""
    async with open_store(options) as store:
        comment = await store.add_comment(await add_user(store), "still here")
    async with open_store(options) as store:
        assert await store.comments(10) == [comment]
        assert await store.credentials("ann@example.com") is not None


async def test_a_broken_database_is_a_store_error(tmp_path: Path) -> None:
    """A server that does not answer and a file that is not a database are the database's fault."""
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/none"
    with pytest.raises(StoreError) as caught:
        async with open_store(CommentsOptions(data_dir=tmp_path, database_url=url)):
            pass
    assert "secret" not in str(caught.value)
    folder = CommentsOptions(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}")
    with pytest.raises(StoreError):
        async with open_store(folder):
            pass


@pytest.mark.parametrize("url", ["nonsense", "oracle+nodriver://host/x", "postgresql://h:port/x"])
def test_a_wrong_url_is_one_line(url: str, tmp_path: Path) -> None:
    """It names the setting's fault and not the URL, which may hold a password."""
    with pytest.raises(CommentsError) as caught:
        make_engine(CommentsOptions(data_dir=tmp_path, database_url=url))
    assert url not in str(caught.value)


@pytest.mark.parametrize("kind", ["mysql", "oracle", "mssql+pyodbc"])
def test_only_sqlite_and_postgresql_are_databases(kind: str, tmp_path: Path) -> None:
    """No other kind is said to be a driver's matter."""
    url = f"{kind}://user:secret@host/x"
    with pytest.raises(CommentsError, match=r"is PostgreSQL or SQLite, not (mysql|oracle|mssql)$"):
        make_engine(CommentsOptions(data_dir=tmp_path, database_url=url))


def test_postgresql_without_a_driver_is_psycopg(tmp_path: Path) -> None:
    """The one that the extra `postgres` installs, whatever SQLAlchemy's own default is."""
    engine = make_engine(CommentsOptions(data_dir=tmp_path, database_url="postgresql://host/x"))
    assert engine.driver == "psycopg"
    engine.dispose()
