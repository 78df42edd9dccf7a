"""The format of the history's file: refused, left alone, or brought up with a copy kept."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from repeater.brokers.receipts import settled
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.formats import STEPS, Step, newest_format, prepare
from repeater.brokers.sqlite.journal import FILE, open_journal
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.brokers.sqlite.records import Changes, StreamRecord
from repeater.errors import BrokerError
from repeater.options import ChannelOptions
from repeater.publication import ClientInfo, Publication
from tests.durable import opened

pytestmark = pytest.mark.timeout(30)

NEWEST = newest_format()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of today's format, with a value that a step must not lose."""
    journal = open_journal(tmp_path, "disk")
    journal.write(Changes(meta={"kept": "1"}))
    journal.close()
    return tmp_path / FILE


def add_column(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE streams ADD COLUMN first INTEGER NOT NULL DEFAULT 0")


def add_table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE later(id INTEGER PRIMARY KEY)")


def fail(connection: sqlite3.Connection) -> None:
    add_table(connection)
    raise sqlite3.OperationalError("disk I/O error")


def bring_up(path: Path, steps: Mapping[int, Step]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        prepare(connection, path, steps)
    finally:
        connection.close()


def facts(path: Path) -> tuple[int, set[str], bool, dict[str, str]]:
    """Format, tables, whether streams have the new column, and the small values."""
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(streams)")}
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    finally:
        connection.close()
    return version, tables, "first" in columns, meta


LATER: Mapping[int, Step] = {**STEPS, NEWEST: add_column, NEWEST + 1: add_table}


def test_an_older_file_is_brought_up_and_a_copy_of_it_is_kept(path: Path) -> None:
    """All steps are taken, and the copy beside the file is the file as it was."""
    before = facts(path)
    bring_up(path, LATER)
    version, tables, column, meta = facts(path)
    assert (version, column, meta) == (NEWEST + 2, True, {"kept": "1"})
    assert "later" in tables
    copy = path.with_name(f"{FILE}.format-{NEWEST}")
    assert facts(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600


def test_commits_that_are_in_the_wal_are_in_the_copy(path: Path) -> None:
    """A kill left them there; the copy is complete without a file beside it."""
    journal = open_journal(path.parent, "disk")
    journal.write(Changes(meta={"late": "1"}))
    wal = path.with_name(f"{FILE}-wal").read_bytes()
    whole = path.read_bytes()
    journal.close()
    path.write_bytes(whole)
    path.with_name(f"{FILE}-wal").write_bytes(wal)
    bring_up(path, LATER)
    assert facts(path.with_name(f"{FILE}.format-{NEWEST}"))[3] == {"kept": "1", "late": "1"}
    assert facts(path)[3] == {"kept": "1", "late": "1"}


def test_a_step_that_fails_changes_nothing(path: Path) -> None:
    """The steps before it are taken back, too, and the next start begins again."""
    before = facts(path)
    with pytest.raises(sqlite3.OperationalError):
        bring_up(path, {**STEPS, NEWEST: add_column, NEWEST + 1: fail})
    assert facts(path) == before
    bring_up(path, LATER)
    assert facts(path)[0] == NEWEST + 2


def test_a_copy_that_cannot_be_written_keeps_the_old_format(path: Path) -> None:
    """Nothing is changed without a copy."""
    before = facts(path)
    path.with_name(f"{FILE}.format-{NEWEST}").mkdir()
    with pytest.raises(JournalError, match=rf"format-{NEWEST}: "):
        bring_up(path, LATER)
    assert facts(path) == before
    assert not list(path.parent.glob("*.tmp*"))


async def test_publications_of_the_first_format_are_read(tmp_path: Path) -> None:
    """Their bodies have no mark for binary data; new ones stand behind them."""
    now = time.time()
    row = [b'{"a":1}', int(now * 1_000), {"k": "v"}, ["ann", "1", b"{}", None], True, 3, "e"]
    journal = open_journal(tmp_path, "disk")
    stream = StreamRecord(1, "c", "epoch", 1, 3, "e", now, 600, 600)
    publication = (1, 1, 1, msgspec.msgpack.encode(row))
    journal.write(Changes(streams=[stream], publications=[publication]))
    journal.close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript("DROP TABLE rows; DROP TABLE terms; PRAGMA user_version = 1")
    connection.close()
    options = ChannelOptions(history_ttl=600, history_meta_ttl=600)
    async with opened(tmp_path) as (broker, _):
        await settled(broker.submit(Publication("c", b"\xff", binary=True), options))
    async with opened(tmp_path) as (broker, _):
        (old, new), _ = broker.history("c", options)
    assert facts(tmp_path / FILE)[0] == NEWEST
    assert (old.data, old.tags, old.delta, old.version) == (b'{"a":1}', {"k": "v"}, True, 3)
    assert old.info == ClientInfo("ann", "1", msgspec.Raw(b"{}"))
    assert (old.binary, new.binary, new.data) == (False, True, b"\xff")


def test_a_file_of_the_newest_format_is_left_alone(path: Path) -> None:
    """No copy, no step."""
    bring_up(path, STEPS)
    assert facts(path)[0] == NEWEST
    assert not list(path.parent.glob("*.format-*"))


def test_a_newer_file_is_refused_in_one_line(path: Path) -> None:
    """The line has both formats; the file keeps every byte."""
    bring_up(path, LATER)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=f"has format {NEWEST + 2}, .* reads up to {NEWEST}$"):
        open_journal(path.parent, "disk")
    assert path.read_bytes() == before


async def test_the_broker_says_the_same(path: Path) -> None:
    """The line of a refused file is the broker's."""
    bring_up(path, LATER)
    with pytest.raises(BrokerError, match=f"has format {NEWEST + 2}, .* reads up to {NEWEST}$"):
        async with open_sqlite_broker(path.parent):
            pytest.fail("it was opened")


@pytest.mark.parametrize("application", [0, 7])
def test_another_program_s_database_is_refused(tmp_path: Path, application: int) -> None:
    """Its tables or its mark are not ours; not one byte of it is changed."""
    path = tmp_path / FILE
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {application}")
    connection.execute("CREATE TABLE notes(text TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program's database"):
        open_journal(tmp_path, "disk")
    assert path.read_bytes() == before


def test_leftovers_of_a_kill_are_removed_at_the_start(tmp_path: Path) -> None:
    """Temporary files go; backups and kept copies stay."""
    gone = [f"{FILE}.tmp", f"{FILE}.compact.tmp", f"{FILE}.compact.tmp-journal"]
    kept = [f"{FILE}.format-0", f"{FILE}.replaced-20260101-000000", "backup.sqlite3"]
    for name in (*gone, *kept):
        (tmp_path / name).write_bytes(b"x")
    open_journal(tmp_path, "disk").close()
    left = {one.name for one in tmp_path.iterdir()}
    assert left >= set(kept)
    assert not left & set(gone)
