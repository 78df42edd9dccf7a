"""What a file of a history holds, and whether it is whole. Sync, for commands; reads every row.

The file must stand still: no process writes it, or the server holds it (`Journal.pin`). It is
opened as immutable, so nothing is locked and nothing is written, not even beside it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from repeater.brokers.sqlite.errors import JournalError, explained, is_damage, reason_of
from repeater.brokers.sqlite.formats import TABLES_SINCE, format_of
from repeater.brokers.sqlite.records import publication_of

_FAULTS: Final = 20  # faults that are told one by one
_PAGE: Final = 10_000  # rows read at a time


class Inspection(msgspec.Struct):
    """The contents of one file."""

    file: str
    format: int = 0
    """0 for an empty file."""
    size: int = 0
    """Bytes of the file."""
    streams: int = 0
    publications: int = 0
    bytes: int = 0
    """Of the publications, as they are stored."""
    oldest: float | None = None
    """Unix seconds of the first publication; None without one."""
    results: int = 0
    """Of publishes with an idempotency key."""
    denials: int = 0
    """Blocked users and revoked tokens."""
    waiting: int = 0
    """Publications of streams that are forgotten; a commit will free them."""
    generation: int = 0
    """Ends every epoch that is told, unless it is 0."""
    faults: list[str] = []
    more_faults: int = 0
    """Faults beside those that are told."""

    def add(self, fault: str) -> None:
        """Note one more fault."""
        if len(self.faults) < _FAULTS:
            self.faults.append(fault)
        else:
            self.more_faults += 1


def inspect(path: Path) -> Inspection:
    """Read the whole file; what is wrong with it is in `faults`.

    Raises:
        JournalError: the file cannot be read, is another program's, or has a newer format.
    """
    try:
        found = Inspection(str(path), size=path.stat().st_size)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    with open_still(path) as connection:
        try:
            found.format = format_of(connection, path)
            if found.format:
                _check_pages(connection, found)
            if found.format >= TABLES_SINCE:  # else its tables are others
                _read(connection, found)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise JournalError(f"{path}: {reason_of(error)}") from None
            found.add(reason_of(error))
    return found


@contextlib.contextmanager
def open_still(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file that stands still, to read it, without a lock or a file beside it.

    Raises:
        JournalError: it cannot be opened.
    """
    with explained():
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None
        )
    try:
        yield connection
    finally:
        connection.close()


def _check_pages(connection: sqlite3.Connection, found: Inspection) -> None:
    for (line,) in connection.execute(f"PRAGMA quick_check({_FAULTS})"):
        if line != "ok":
            found.add(line.replace("\n", " "))


class _Stream(msgspec.Struct):
    """A stream, and the offset of its last publication so far."""

    channel: str
    top: int
    last: int = 0


def _read(connection: sqlite3.Connection, found: Inspection) -> None:
    streams: dict[int, _Stream] = {}
    for number, channel, epoch, top in connection.execute(
        "SELECT id, channel, epoch, top FROM streams"
    ):
        streams[number] = _Stream(channel, top)
        if number < 1 or top < 0 or not epoch:
            found.add(f"channel {channel!r}: its row makes no sense")
    found.streams = len(streams)
    cursor = connection.execute("SELECT * FROM publications ORDER BY id")
    while rows := cursor.fetchmany(_PAGE):
        for row, number, offset, body in rows:
            _read_publication(found, streams.get(number), row, offset, body)
    for stream in streams.values():
        if 0 < stream.last < stream.top:
            found.add(
                f"channel {stream.channel!r}: the last publication is {stream.last}"
                f" and the top is {stream.top}"
            )
    (found.results,) = connection.execute("SELECT count(*) FROM results").fetchone()
    (found.denials,) = connection.execute("SELECT count(*) FROM denials").fetchone()
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    found.generation = generation_of(meta)
    if meta and str(found.generation) != meta.get("generation", "0"):
        found.add("the generation is not a number")


def _read_publication(
    found: Inspection, stream: _Stream | None, row: int, offset: int, body: bytes
) -> None:
    found.publications += 1
    found.bytes += len(body)
    try:
        time = publication_of("", "", offset, body).time
    except msgspec.DecodeError:
        found.add(f"publication {row} cannot be read")
    else:
        if found.oldest is None:
            found.oldest = time / 1_000
    if stream is None:
        found.waiting += 1
        return
    if stream.last and offset != stream.last + 1:
        found.add(f"channel {stream.channel!r}: {offset} comes after {stream.last}")
    stream.last = offset


def generation_of(meta: dict[str, str]) -> int:
    """The generation in a file's small values; 0 for none."""
    text = meta.get("generation", "0")
    return int(text) if text.isdecimal() else 0
