"""`repeater_client`: publishing from the transactions of a real Django, in PostgreSQL 18."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import unittest
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import django
import psycopg
import pytest
from django.conf import settings
from django.db import (
    DatabaseError,
    NotSupportedError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from psycopg.conninfo import conninfo_to_dict

import repeater
import repeater_client
from repeater.postgres.schema import grant
from repeater_client.django import publish, publish_many
from repeater_client.testing import published
from tests.deadlines import PROCESS_STARTS
from tests.postgres_databases import publishing_database, some_role

pytestmark = pytest.mark.timeout(2 * PROCESS_STARTS)

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "service" / "repeater_client"


@pytest.fixture(scope="module")
def database(postgresql: str) -> Iterator[str]:
    """A database with the schema, which is Django's default one; `sqlite` is the other."""
    with publishing_database(postgresql) as url:
        parts = conninfo_to_dict(url)
        default = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts.get("user"),
            "HOST": parts.get("host"),
            "PORT": parts.get("port"),
        }
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": default, "sqlite": sqlite}, LOGGING_CONFIG=None)
        django.setup()
        yield url


@pytest.fixture
def url(database: str) -> Iterator[str]:
    """The database, empty; Django's connections end with the test."""
    with psycopg.connect(database) as one:
        one.execute("TRUNCATE repeater.outgoing")
    yield database
    connections.close_all()


def rows(url: str, *columns: str) -> list[tuple[Any, ...]]:
    """What others see: the columns of all rows that are committed, in their order."""
    names = ", ".join(columns or ("channel", "data"))
    with psycopg.connect(url) as other:
        return other.execute(f"SELECT {names} FROM repeater.outgoing ORDER BY id").fetchall()


def test_a_commit_publishes(url: str) -> None:
    """And nobody sees anything before it."""
    with transaction.atomic():
        number = publish("orders:42", {"id": 42})
        assert rows(url) == []
    assert rows(url, "id", "channel", "data") == [(number, "orders:42", '{"id": 42}')]


def test_a_rollback_does_not(url: str) -> None:
    """The row goes with all else that the transaction has done."""
    with transaction.atomic():
        publish("orders:42", 1)
        transaction.set_rollback(True)
    assert rows(url) == []


def test_a_savepoint_counts(url: str) -> None:
    """What is rolled back to it is not published; what came before and comes after is."""
    with transaction.atomic():
        publish("c", 1)
        with transaction.atomic():
            publish("c", 2)
            transaction.set_rollback(True)
        publish("c", 3)
        assert published() == [("c", 1), ("c", 3)]
    assert rows(url) == [("c", "1"), ("c", "3")]


def test_without_a_transaction_it_is_one_of_its_own(url: str) -> None:
    """Django commits each statement then."""
    publish("c", 1)
    assert rows(url) == [("c", "1")]


def test_everything_that_a_publication_has_is_passed_on(url: str) -> None:
    """Versions are as large as Repeater's; without them nothing is set."""
    tags = {"state": "paid"}
    publish("c", 1, key="k", version=2**64 - 1, version_epoch="e", tags=tags)
    publish("c", None)
    seen = rows(url, "data", "key", "version", "version_epoch", "tags")
    assert seen == [
        ("1", "k", Decimal(2**64 - 1), "e", '{"state": "paid"}'),
        ("null", None, None, None, None),
    ]


def test_data_is_what_django_s_encoder_writes(url: str) -> None:
    """Dates, decimals and UUIDs, and any text with its quotes and percent signs."""
    data = {
        "at": datetime(2026, 11, 27, 12, tzinfo=UTC),
        "price": Decimal("9.90"),
        "id": UUID(int=7),
        "text": "100 % 'of' \"Zoë\" {%s}\\",
    }
    publish("c%s", data)
    publish_many([("c%s", data)])
    expected = {
        "at": "2026-11-27T12:00:00Z",
        "price": "9.90",
        "id": "00000000-0000-0000-0000-000000000007",
        "text": data["text"],
    }
    assert [(one, json.loads(text)) for one, text in rows(url)] == [("c%s", expected)] * 2


def test_many_are_published_in_their_order(url: str) -> None:
    """By one statement, whatever the channels; any iterable will do, none of them is nothing."""
    pairs = [(f"c:{number % 7}", number) for number in range(500)]
    with transaction.atomic():
        numbers = publish_many(iter(pairs))
        assert publish_many([]) == []
        assert published() == pairs
    assert numbers == sorted(numbers)
    assert rows(url, "id", "channel", "data::int") == [
        (number, *pair) for number, pair in zip(numbers, pairs, strict=True)
    ]


@pytest.mark.parametrize("data", [float("nan"), object(), {"x": {1, 2}}])
def test_what_is_not_json_leaves_the_transaction_usable(url: str, data: object) -> None:
    """The error comes before the database hears of anything."""
    with transaction.atomic():
        for call in (lambda: publish("c", data), lambda: publish_many([("c", data)])):
            with pytest.raises((TypeError, ValueError)):
                call()
        publish("c", 1)
    assert rows(url) == [("c", "1")]


@pytest.mark.parametrize("text", ["\0", "\ud800"])
def test_what_jsonb_cannot_hold_fails_the_statement(url: str, text: str) -> None:
    """A NUL, and half a surrogate pair; before them a savepoint helps, as with every error."""
    with transaction.atomic():
        publish("c", 1)
        with pytest.raises(DatabaseError), transaction.atomic():
            publish("c", text)
    assert rows(url) == [("c", "1")]


def test_another_database_is_refused(url: str) -> None:
    """With a sentence that names it."""
    calls = (
        lambda: publish("c", 1, using="sqlite"),
        lambda: publish_many([("c", 1)], using="sqlite"),
        lambda: published(using="sqlite"),
    )
    for call in calls:
        with pytest.raises(NotSupportedError, match="the database 'sqlite' is sqlite: publishing"):
            call()


def test_a_test_case_sends_nothing_and_shows_it(url: str) -> None:
    """Django's `TestCase` rolls back; a test sees its own publications, and those of its class."""

    class OrderTests(TestCase):  # type: ignore[misc]  # Django has no types
        @classmethod
        def setUpTestData(cls) -> None:
            publish("orders:0", 0)

        def test_one(self) -> None:
            publish("orders:1", {"price": Decimal("1.5")})
            assert published() == [("orders:0", 0), ("orders:1", {"price": "1.5"})]

        def test_other(self) -> None:
            publish("orders:2", 2)
            assert published() == [("orders:0", 0), ("orders:2", 2)]

    result = unittest.TestResult()
    unittest.TestSuite(map(OrderTests, ("test_one", "test_other"))).run(result)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
    assert rows(url) == []


def test_published_is_of_this_transaction(url: str) -> None:
    """Not what an earlier one, or another connection, has committed."""
    publish("c", 1)
    with transaction.atomic():
        assert published() == []
        with psycopg.connect(url) as other:
            other.execute("SELECT repeater.publish('c', '2')")
        assert published() == []
        publish("c", 3)
        assert published() == [("c", 3)]


def test_published_needs_a_transaction(url: str) -> None:
    """Without one it would always be empty, which a test would believe."""
    with pytest.raises(TransactionManagementError, match="none is open"):
        published()


def test_a_role_that_publishes_is_enough(url: str) -> None:
    """For publishing; what is published is for the owner of the schema to read."""
    with some_role(url) as role:
        grant(url, role)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL ROLE {role}")
            publish("c", 1)
            publish_many([("c", 2)])
            with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
                published()
    assert rows(url) == [("c", "1"), ("c", "2")]


def test_without_the_schema_the_database_says_so(url: str) -> None:
    """An error of the statement, which names the schema."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER SCHEMA repeater RENAME TO elsewhere")
        with pytest.raises(ProgrammingError, match='schema "repeater" does not exist'):
            publish("c", 1)
        transaction.set_rollback(True)


def test_importing_it_loads_nothing_else() -> None:
    """Neither Django nor the server; and `repeater_client.django` does not load the server."""
    code = (
        "import sys, repeater_client; assert not {'django', 'repeater'} & set(sys.modules);"
        "import repeater_client.django, repeater_client.testing; assert 'django' in sys.modules;"
        "assert not {'repeater', 'psycopg', 'trio'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT / "service", check=True, timeout=PROCESS_STARTS)


def test_the_distribution_goes_with_the_server_s() -> None:
    """The same version, licence and authors; nothing is installed with it."""
    assert repeater_client.__version__ == repeater.__version__
    assert (FOLDER / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    own, server = (
        tomllib.loads((one / "pyproject.toml").read_text())["project"] for one in (FOLDER, ROOT)
    )
    for key in ("license", "authors", "requires-python", "dynamic"):
        assert own[key] == server[key]
    assert own["dependencies"] == []
