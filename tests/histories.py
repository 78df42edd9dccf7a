"""Files of a history for tests: filled, damaged, read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from repeater.brokers.sqlite.journal import FILE, Journal, open_journal
from repeater.brokers.sqlite.records import (
    Changes,
    StoredPublication,
    StoredResult,
    StreamRecord,
    body_of,
)
from repeater.publication import Publication, StreamPosition

TIME = 1_764_000_000_000
"""Unix milliseconds of the first publication of a filled file."""


def fill(
    journal: Journal, *, begin: int = 1, streams: int = 3, publications: int = 5, first: int = 1
) -> None:
    """Commit the streams from `begin` to `streams`, with so many publications each.

    Their publications before `first` were freed already.
    """
    for number in range(begin, streams + 1):
        channel = f"c{number}"
        rows: list[StoredPublication] = [
            (
                (number << 20) + offset,
                number,
                offset,
                body_of(Publication(channel, b'{"n":%d}' % offset, time=TIME + offset)),
            )
            for offset in range(first, first + publications)
        ]
        journal.write(
            Changes(
                streams=[StreamRecord(number, channel, "e", 0, 0, "", TIME / 1_000, 1e9, 1e9)],
                publications=rows,
                results=[StoredResult(channel, "key", StreamPosition(1, "e"), 1e10)],
            )
        )


def fill_wal(journal: Journal) -> None:
    """Commit so much that SQLite brings the WAL into the file, if it may: 20 MB."""
    body = body_of(Publication("c1", b'"%s"' % (b"x" * 20_000_000), time=TIME))
    journal.write(Changes(publications=[(1 << 40, 1, 6, body)]))


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    """The journal in a folder, closed at the end."""
    journal = open_journal(folder, "disk")
    try:
        yield journal
    finally:
        journal.close()


def make(folder: Path, **more: int) -> Path:
    """A closed file in a folder, filled."""
    with opened(folder) as journal:
        journal.write(Changes(meta={"generation": "0"}))
        fill(journal, **more)
    return folder / FILE


def killed(folder: Path) -> Path:
    """A new file as a kill leaves it: what was committed last is in the WAL alone."""
    (folder / FILE).unlink(missing_ok=True)
    path = make(folder, streams=1)
    wal = path.with_name(f"{FILE}-wal")
    with opened(folder) as journal:
        fill(journal, begin=2, streams=3)
        parts = path.read_bytes(), wal.read_bytes()
    path.write_bytes(parts[0])
    wal.write_bytes(parts[1])
    return path


def change(path: Path, statement: str) -> None:
    """Run a statement on a closed file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of a closed file, by table."""
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
