"""docs/postgres.md: its commands, statements and programs, as they stand there, run."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.peers.postgresql import PostgreSQL, binaries
from repeater.config import load_settings
from repeater.postgres.schema import migrate, schema_text
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.postgres_databases import empty_database, publishing_database
from tests.postgres_servers import open_postgresql

pytestmark = pytest.mark.timeout(3 * PROCESS_STARTS)

PAGE = (Path(__file__).parent.parent / "docs" / "postgres.md").read_text(encoding="utf-8")
TABLE = "CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL)"
SETTINGS = """
INSTALLED_APPS = ["shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **%r}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
PAYS = """
import django
django.setup()
from shop.models import Order, pay, send_all
for state in ("new", "new"):
    Order.objects.create(state=state)
for number in (1, 2):
    pay(number)
send_all()
"""


def blocks(language: str) -> list[str]:
    """The page's blocks in a language that belong to no file, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def files(folder: Path, *names: str) -> None:
    """Write the page's files with these names."""
    found = dict(re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(found[name])


@pytest.fixture
def empty(postgresql: str) -> Iterator[str]:
    with empty_database(postgresql) as url:
        yield url


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    with publishing_database(postgresql) as url:
        yield url


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """One of its own, which can prepare transactions."""
    with open_postgresql() as server:
        yield server


def published(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT channel, data FROM repeater.outgoing ORDER BY id"
        ).fetchall()


def run(url: str, statements: str) -> list[tuple[Any, ...]]:
    """Run each statement alone, as psql does; the rows of the last one that has any."""
    rows: list[tuple[Any, ...]] = []
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in re.split(r";(?:\s|$)", statements):
            cursor = connection.execute(statement)
            if cursor.description is not None:
                rows = cursor.fetchall()
    return rows


def test_the_commands_set_a_database_up(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And let the two roles do what they are for."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("repeater ")]
    assert len(commands) == 3
    names = {name: f"{name}_{uuid4().hex}" for name in ("shop_web", "shop_repeater")}
    for name in names.values():
        run(empty, f"CREATE ROLE {name}")
    for command in commands:
        words = [names.get(word, word) for word in command.split()]
        assert words[-1] == "postgresql://owner@db.example.org/shop"
        words = [sys.executable, "-m", *words[:-1], empty]
        subprocess.run(words, check=True, timeout=PROCESS_STARTS, capture_output=True)
    web, taking = names.values()
    run(empty, f"SET ROLE {web}; SELECT repeater.publish('c', '1')")
    run(empty, f"SET ROLE {taking}; SELECT repeater.done('{{}}', '{{}}', '{{}}')")
    run(empty, "; ".join(f"DROP OWNED BY {name}; DROP ROLE {name}" for name in names.values()))


async def test_the_statements_publish(server: PostgreSQL, tmp_path: Path) -> None:
    """In one database, one after the other; a server with the page's file takes all of it."""
    migrate(server.url)
    run(server.url, f"{TABLE}; INSERT INTO orders VALUES (1, 'new'), (42, 'new')")
    answers = [run(server.url, block) for block in blocks("sql")]
    changes = ("INSERT INTO orders VALUES (7, 'new')", "DELETE FROM orders WHERE id = 7")
    for one in changes:
        run(server.url, one)
    paid = '{"id": 42, "state": "paid"}'
    rows = [
        *(("orders:42", paid),) * 3,
        *(("orders:1", '{"state": "sent"}'), ("orders:2", '{"state": "lost"}')),
        ("orders:42", '{"state": "paid"}'),
        ("orders:7", '{"row": {"id": 7, "state": "new"}, "operation": "INSERT"}'),
        ("orders:7", '{"row": {"id": 7, "state": "new"}, "operation": "DELETE"}'),
    ]
    assert published(server.url) == rows
    (written,) = (block for block in blocks("sql") if "jsonb::text" in block)
    assert [(written.splitlines()[1].removeprefix("-- "),)] in answers
    file = tmp_path / "repeater.toml"
    file.write_text(*blocks("toml"))
    settings = load_settings(file, outbox=server.url, port=0)
    with trio.fail_after(PROCESS_STARTS):
        async with open_server(settings) as running:
            # Nobody tells: the database is no task of ours.
            while published(server.url):  # noqa: ASYNC110
                await trio.sleep(0.01)
            for channel in {channel for channel, _ in rows}:
                kept, _ = await running.node.history(channel)
                assert [one.data.decode() for one in kept] == [
                    data for other, data in rows if other == channel
                ]
    assert run(server.url, "SELECT * FROM repeater.refused") == []


def test_django_s_files_publish_and_their_test_passes(empty: str, tmp_path: Path) -> None:
    """Django makes the schema by the migration: in its database, and in that of its tests."""
    parts = conninfo_to_dict(empty)
    named = {"NAME": parts["dbname"], "USER": parts.get("user"), "HOST": parts.get("host")}
    (tmp_path / "settings.py").write_text(SETTINGS % named)
    migrations = tmp_path / "shop" / "migrations"
    files(tmp_path, "shop/models.py")
    migrations.mkdir()
    for package in (tmp_path / "shop", migrations):
        (package / "__init__.py").touch()
    assert "repeater postgres sql > shop/migrations/repeater.sql" in PAGE
    (migrations / "repeater.sql").write_text(schema_text())
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROCESS_STARTS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    python("-m", "django", "makemigrations", "shop")
    files(tmp_path, "shop/migrations/0002_repeater.py", "shop/tests.py")
    assert "Ran 1 test" in python("-m", "django", "test")
    python("-m", "django", "migrate")
    python("-c", PAYS)
    assert published(empty) == [
        ("orders:1", '{"id": 1, "state": "paid"}'),
        ("orders:2", '{"id": 2, "state": "paid"}'),
        ("orders:1", '{"id": 1, "state": "sent"}'),
        ("orders:2", '{"id": 2, "state": "sent"}'),
    ]
    python("-m", "django", "migrate", "shop", "0001")
    assert run(empty, "SELECT to_regnamespace('repeater')") == [(None,)]


@pytest.fixture
def orders(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module orders.py, and its table with one order; api.py is beside it."""
    files(tmp_path, "orders.py", "api.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DATABASE_URL", alchemy(url))
    run(url, f"{TABLE}; INSERT INTO orders VALUES (42, 'new')")
    import orders  # type: ignore[import-not-found]  # it is made here

    yield orders
    for name in ("orders", "api"):
        sys.modules.pop(name, None)


def alchemy(url: str) -> str:
    """SQLAlchemy's form of the address."""
    return url.replace("postgresql://", "postgresql+psycopg://")


PAID = ("orders:42", '{"id": 42, "state": "paid"}')


def test_sqlalchemy_publishes_with_its_session(url: str, orders: Any) -> None:
    """A commit does, a rollback does not, and a savepoint counts."""
    engine = create_engine(alchemy(url))
    with Session(engine) as session:
        orders.pay(session, 42)
    assert published(url) == [PAID]
    with Session(engine) as session:
        session.execute(orders.publish("c", 1))
        session.rollback()
        session.execute(orders.publish("c", {"text": "100 % :of 'it'"}, "k"))
        with session.begin_nested() as savepoint:
            session.execute(orders.publish("c", 3))
            savepoint.rollback()
        number = session.scalar(orders.publish("c", None))
        assert isinstance(number, int)
        assert published(url) == [PAID]
        session.commit()
    engine.dispose()
    assert published(url) == [PAID, ("c", '{"text": "100 % :of \'it\'"}'), ("c", "null")]


def test_asynchronous_sessions_do_the_same(url: str, orders: Any) -> None:
    """On asyncio, with psycopg."""

    async def main() -> None:
        engine = create_async_engine(alchemy(url))
        async with AsyncSession(engine) as session:
            await session.execute(orders.publish("c", 1))
            await session.rollback()
            async with session.begin_nested() as savepoint:
                await session.execute(orders.publish("c", 2))
                await savepoint.rollback()
            await session.execute(orders.publish("c", 3))
            await session.commit()
        await engine.dispose()

    asyncio.run(main())
    assert published(url) == [("c", "3")]


@pytest.mark.usefixtures("orders")
def test_fastapi_publishes_with_its_session(url: str) -> None:
    """The request that pays publishes; one for an order that is not there does not."""
    import api  # type: ignore[import-not-found]  # it is made by the fixture
    from sqlalchemy.exc import NoResultFound

    async def main() -> None:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answer = await client.post("/orders/42/pay", timeout=LOOP_ANSWERS)
            assert answer.json() == {"state": "paid"}
            with pytest.raises(NoResultFound):
                await client.post("/orders/43/pay", timeout=LOOP_ANSWERS)
        await api.engine.dispose()

    asyncio.run(main())
    assert published(url) == [PAID]


def test_a_dump_has_the_settings_and_no_rows(url: str, empty: str, tmp_path: Path) -> None:
    """By the page's command; what is put back can be used at once, under the same name."""
    run(url, "SELECT repeater.publish('c', '1')")
    folder = binaries(18)
    assert folder is not None
    (command,) = (line for block in blocks("sh") for line in block.splitlines() if "dump" in line)
    words = command.split()
    assert (words[0], words[-1]) == ("pg_dump", "shop")
    dump = tmp_path / "dump.sql"
    steps = (
        (str(folder / "pg_dump"), *words[1:-1], "-f", str(dump), url),
        (str(folder / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(dump), empty),
    )
    for step in steps:
        subprocess.run(step, check=True, timeout=PROCESS_STARTS, stdout=subprocess.DEVNULL)
    assert published(empty) == []
    for question in ("SELECT version, source FROM repeater.settings",):
        assert run(empty, question) == run(url, question) != []
    assert not migrate(empty)
    run(empty, "SELECT repeater.publish('c', '2')")
    assert published(empty) == [("c", "2")]
