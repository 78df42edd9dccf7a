"""A history's file inspected, copied, put back and compacted, without a server."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from repeater.brokers.sqlite import files
from repeater.brokers.sqlite.compaction import compact
from repeater.brokers.sqlite.copies import REPLACED, back_up, is_backup, restore, settle
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.formats import newest_format
from repeater.brokers.sqlite.inspection import inspect
from repeater.brokers.sqlite.journal import FILE
from repeater.brokers.sqlite.records import Changes
from tests.histories import TIME, change, dump, fill, fill_wal, killed, make, opened

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob("*.tmp*"))


def test_a_whole_file(folder: Path) -> None:
    """The numbers are those of its rows, and nothing was written beside the file."""
    path = make(folder)
    before = sorted(one.name for one in folder.iterdir())
    found = inspect(path)
    assert (found.streams, found.publications, found.results, found.denials) == (3, 15, 3, 0)
    assert found.oldest == (TIME + 1) / 1_000
    assert sorted(one.name for one in folder.iterdir()) == before
    change(path, "CREATE TABLE sizes AS SELECT sum(length(body)) FROM publications")
    assert dump(path)["sizes"] == [(found.bytes,)]
    assert (found.faults, found.waiting, found.format) == ([], 0, newest_format())


def test_a_whole_file_of_the_first_format(folder: Path) -> None:
    """A backup of an older server is read, row by row, and stays as it is."""
    path = make(folder)
    change(path, "PRAGMA user_version = 1")
    found = inspect(path)
    assert (found.format, found.streams, found.publications, found.faults) == (1, 3, 15, [])
    assert inspect(path).format == 1


def test_an_empty_file(folder: Path) -> None:
    """A server that was killed before it made the tables leaves one."""
    (folder / FILE).touch()
    assert inspect(folder / FILE).format == 0


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ('DELETE FROM publications WHERE "offset" = 3', "'c1': 4 comes after 2"),
        ("UPDATE streams SET top = 9 WHERE id = 2", "'c2': the last publication is 5"),
        ("UPDATE publications SET body = x'00' WHERE id % 7 = 1", "cannot be read"),
        ("UPDATE streams SET epoch = '' WHERE id = 1", "makes no sense"),
        ("UPDATE meta SET value = 'x'", "the generation is not a number"),
    ],
)
def test_rows_that_contradict_each_other(folder: Path, statement: str, fault: str) -> None:
    """SQLite finds nothing wrong with them; the rules of the history do."""
    path = make(folder)
    change(path, statement)
    assert fault in inspect(path).faults[0]


def test_rows_of_a_forgotten_stream_are_no_fault(folder: Path) -> None:
    """They are freed some at a time, behind their stream."""
    path = make(folder)
    change(path, "DELETE FROM streams WHERE id = 3")
    found = inspect(path)
    assert (found.waiting, found.faults) == (5, [])


def test_freed_publications_leave_no_gap(folder: Path) -> None:
    """A stream may begin anywhere, as far as the rest follows."""
    assert inspect(make(folder, first=40)).faults == []


def test_many_faults_are_counted(folder: Path) -> None:
    """Some are told, the others are a number."""
    path = make(folder, streams=50)
    change(path, 'DELETE FROM publications WHERE "offset" = 3')
    found = inspect(path)
    assert (len(found.faults), found.more_faults) == (20, 30)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_damaged(folder: Path, keep: float) -> None:
    """Pages are missing at its end; a backup of it is not made, and it is not restored."""
    path = make(folder, streams=50, publications=50)
    os.truncate(path, int(path.stat().st_size * keep))
    assert inspect(path).faults
    with pytest.raises(JournalError, match="is damaged"):
        back_up(path, folder.parent / "backup")
    with pytest.raises(JournalError, match="is damaged"):
        restore(folder.parent, path)
    assert [one.name for one in folder.parent.iterdir()] == ["data"]


def test_a_damaged_page_is_found(folder: Path) -> None:
    """Bytes in the middle of the file are others."""
    path = make(folder, streams=50, publications=50)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4_096)
    assert inspect(path).faults


def test_something_else_than_a_database(folder: Path) -> None:
    """It is damaged, as far as one can tell."""
    (folder / FILE).write_bytes(b"hello " * 1_000)
    assert inspect(folder / FILE).faults == ["the file is not a database"]
    with pytest.raises(JournalError, match="missing: No such file"):
        inspect(folder / "missing")


def test_a_backup_is_one_file_with_everything(folder: Path) -> None:
    """It is private, needs no file beside it, and is read where nothing can be written."""
    path = killed(folder)
    settle(path)
    target = folder.parent / "backup"
    found = back_up(path, target)
    assert (found.streams, found.publications, found.file) == (3, 15, str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    assert dump(target) == dump(path)
    assert sorted(one.name for one in folder.parent.iterdir()) == ["backup", "data"]
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_backup_replaces_a_backup_and_nothing_else(folder: Path) -> None:
    """A wrong name costs nobody a file, and the server's own names are its own."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    change(path, "DELETE FROM results")
    assert back_up(path, target).results == 0
    (folder.parent / "letter").write_text("dear" * 100)
    with pytest.raises(JournalError, match="exists and is not a backup"):
        back_up(path, folder.parent / "letter")
    for name in (FILE, f"{FILE}-wal"):
        with pytest.raises(JournalError, match="the server's own"):
            back_up(path, folder / name)
    with pytest.raises(JournalError, match="exists and is not a backup"):
        back_up(path, folder)
    with pytest.raises(JournalError, match="nowhere/x: No such file"):
        back_up(path, folder / "nowhere" / "x")
    assert back_up(path, folder / "copy").results == 0


def test_a_backup_of_two_moments_gets_no_name(folder: Path) -> None:
    """If the file did not stand still, the backup before it stays."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    before = target.read_bytes()

    def moved() -> None:
        raise JournalError("it moved")

    with pytest.raises(JournalError, match="it moved"):
        back_up(path, target, stood_still=moved)
    assert target.read_bytes() == before
    assert temporaries(folder.parent) == []


def test_a_restore_puts_the_rows_back_and_keeps_the_replaced_file(folder: Path) -> None:
    """The generation is one that no file of this history had."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    saved = dump(target)
    with opened(folder) as journal:
        journal.write(Changes(meta={"generation": "7000000000"}, forgotten_streams=[1, 2]))
    replaced = dump(path)
    found, kept = restore(folder, target)
    assert kept is not None
    assert kept.name.startswith(FILE + REPLACED)
    assert dump(kept) == replaced
    assert found.generation == 7_000_000_001
    restored = dump(path)
    assert {**restored, "meta": []} == {**saved, "meta": []}
    assert path.stat().st_mode & 0o777 == 0o600
    assert temporaries(folder) == []


def test_two_restores_of_one_backup_have_different_generations(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on machines that know nothing of each other: the generation follows the clock."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    generations = []
    for name, now in (("a", 2e9), ("b", 2e9 + 60)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        (folder.parent / name).mkdir()
        found, kept = restore(folder.parent / name, target)
        assert kept is None
        generations.append(found.generation)
    assert generations == [2_000_000_000, 2_000_000_060]


def test_a_damaged_file_is_replaced_with_its_wal(folder: Path) -> None:
    """Its WAL is not taken for the restored file's."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    saved = dump(target)
    for name in (FILE, f"{FILE}-wal"):
        (folder / name).write_bytes(b"\xff" * 5_000)
    found, kept = restore(folder, target)
    assert kept is not None
    assert kept.read_bytes() == b"\xff" * 5_000
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == b"\xff" * 5_000
    assert not path.with_name(f"{FILE}-wal").exists()
    assert dump(path)["publications"] == saved["publications"]
    assert found.publications == 15


def test_what_cannot_be_restored(folder: Path) -> None:
    """Something else, the history itself, and a file that is not whole alone."""
    path = make(folder)
    before = dump(path)
    foreign = folder.parent / "foreign"
    change(foreign, "CREATE TABLE notes(text TEXT)")
    other = folder.parent / "other"
    other.mkdir()
    newer = folder.parent / "newer"
    back_up(path, newer)
    change(newer, "PRAGMA user_version = 99")
    (folder.parent / "empty").touch()
    for backup, reason in (
        (foreign, "another program's"),
        (path, "is the history itself"),
        (killed(other), "not whole without the commits in"),
        (newer, "has format 99"),
        (folder.parent / "empty", "holds no history"),
        (folder.parent / "missing", "No such file"),
    ):
        with pytest.raises(JournalError, match=reason):
            restore(folder, backup)
    assert dump(path) == before
    assert {one.name for one in folder.iterdir()} == {FILE, "history.reserve"}


def test_compaction_gives_freed_room_back(folder: Path) -> None:
    """The rows, the mark and the format are the same; the WAL's commits are in it."""
    path = make(folder, streams=50, publications=200)
    change(path, "DELETE FROM publications WHERE stream > 5")
    change(path, "DELETE FROM streams WHERE id > 5")
    before, size = dump(path), path.stat().st_size
    found = compact(path)
    assert dump(path) == before
    assert path.stat().st_size == found.size < size // 4
    assert is_backup(path)
    assert (found.format, found.streams, found.publications) == (newest_format(), 5, 1_000)
    assert {one.name for one in folder.iterdir()} == {FILE, "history.reserve"}


def test_compaction_takes_what_a_kill_left_in_the_wal(folder: Path) -> None:
    """And the WAL is gone before the new file has the name."""
    path = killed(folder)
    assert compact(path).publications == 15
    with opened(folder) as journal:
        assert len(journal.streams()) == 3


def test_compaction_of_what_is_no_history(folder: Path) -> None:
    """A missing file is not made, a damaged or foreign one is not touched."""
    with pytest.raises(JournalError, match="holds no history"):
        compact(folder / FILE)
    assert list(folder.iterdir()) == []
    path = make(folder, streams=50, publications=50)
    os.truncate(path, path.stat().st_size // 2)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"damaged|malformed"):
        compact(path)
    assert path.read_bytes() == before
    assert temporaries(folder) == []


def test_compaction_of_a_file_in_use(folder: Path) -> None:
    """The other process has the file's own lock, if it does not know the folder's."""
    path = make(folder)
    with opened(folder), pytest.raises(JournalError, match="another process uses the file"):
        compact(path)
    assert temporaries(folder) == []


def test_a_full_disk_leaves_everything_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step but the rename fails: no new file, no temporary one."""
    path = make(folder)
    target = folder.parent / "backup"
    back_up(path, target)
    before = dump(path), target.read_bytes()

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    for call in (
        lambda: back_up(path, target),
        lambda: restore(folder, target),
        lambda: compact(path),
    ):
        with pytest.raises(JournalError, match="No space left on device"):
            call()
        assert (dump(path), target.read_bytes()) == before
        assert temporaries(folder) + temporaries(folder.parent) == []


def test_a_pinned_file_stands_still_while_commits_go_on(folder: Path) -> None:
    """A copy made meanwhile is of the moment of the pin; afterwards the file follows."""
    with opened(folder) as journal:
        fill(journal, streams=1)
        journal.pin()
        before = journal.path.read_bytes()
        fill_wal(journal)
        assert journal.path.read_bytes() == before
        assert back_up(journal.path, folder.parent / "backup").publications == 5
        with pytest.raises(JournalError, match="another command reads the file"):
            journal.pin()
        journal.unpin()
        fill(journal, begin=2, streams=2)
        assert journal.path.stat().st_size > 20_000_000
        journal.pin()
        assert inspect(journal.path).publications == 11
        journal.unpin()
        journal.unpin()


def test_a_disk_that_failed_ends_a_pin(folder: Path) -> None:
    """What makes room for the next write may change the file."""
    with opened(folder) as journal:
        journal.pin()
        journal.recover(Changes(), was_full=False)
        assert not journal.pinned
