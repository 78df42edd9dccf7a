"""Looks into the file of a durable history while no server uses it."""

from __future__ import annotations

import shutil
import sqlite3
from array import array
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from repeater.brokers.sqlite.records import publication_of
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets
from tests.drill.recorder import FILES


class _Event(msgspec.Struct):
    n: int


_decode = msgspec.json.Decoder(_Event).decode


@dataclass
class StoredStream:
    """What a file has of one channel."""

    epoch: str
    top: int
    first: int
    """The offset of the first number."""
    numbers: array[int]
    """The events' numbers by their offsets."""


@contextmanager
def copy_of(folder: Path, scratch: Path) -> Iterator[Path]:
    """A copy of a history for the time of a block, as its server has left it behind."""
    scratch.mkdir(exist_ok=True)
    try:
        for name in FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, scratch / name)
        yield scratch / FILES[0]
    finally:
        shutil.rmtree(scratch)


def read_history(file: Path) -> Mapping[str, StoredStream]:
    """Everything in the file, by channel.

    Raises:
        BrokenPromise: the file is damaged, or offsets are missing between two others.
    """
    with closing(sqlite3.connect(file)) as connection:
        try:
            found = [row[0] for row in connection.execute("PRAGMA quick_check")]
            if found != ["ok"]:
                raise BrokenPromise(f"quick_check finds {found[:3]}")
            generation = dict(connection.execute("SELECT name, value FROM meta")).get("generation")
            suffix = f".{generation}" if generation not in (None, "0") else ""
            streams = {
                number: (channel, StoredStream(epoch + suffix, top, 0, array("q")))
                for number, channel, epoch, top in connection.execute(
                    "SELECT id, channel, epoch, top FROM streams"
                )
            }
            rows = connection.execute('SELECT stream, "offset", body FROM publications ORDER BY id')
            for number, offset, body in rows:
                if number in streams:
                    _append(*streams[number], offset, body)
        except sqlite3.Error as error:
            raise BrokenPromise(f"the file cannot be read: {error}") from None
    return dict(streams.values())


def _append(channel: str, stream: StoredStream, offset: int, body: bytes) -> None:
    if not stream.numbers:
        stream.first = offset
    elif offset != stream.first + len(stream.numbers):
        last = stream.first + len(stream.numbers) - 1
        raise BrokenPromise(f"{channel} has offset {offset} behind {last}")
    stream.top = max(stream.top, offset)
    data = publication_of(channel, stream.epoch, offset, body).data
    stream.numbers.append(_decode(bytes(data)).n)


def check_history(
    stored: Mapping[str, StoredStream], offsets: Offsets, *, size: int
) -> Mapping[str, int]:
    """Compare a file with what was promised; the counts of what was compared.

    Args:
        stored: What the file has.
        offsets: What was promised.
        size: So many publications of a channel must be there.

    Raises:
        BrokenPromise: something acknowledged is missing, or is another event.
    """
    compared = 0
    for (channel, epoch), top in offsets.tops().items():
        found = stored.get(channel)
        if found is None:
            raise BrokenPromise(f"{channel} with {top} publications is not in the file")
        if found.epoch != epoch:
            raise BrokenPromise(f"{channel} has the epoch {found.epoch} in place of {epoch}")
        if found.top < top:
            raise BrokenPromise(f"{channel} has {found.top} publications, {top} were promised")
        if len(found.numbers) < min(size, found.top):
            raise BrokenPromise(f"{channel} has {len(found.numbers)} of {size} kept publications")
        known = offsets.numbers((channel, epoch))
        for offset, number in enumerate(found.numbers, found.first):
            if (expected := known.get(offset)) is not None and expected != number:
                raise BrokenPromise(f"{channel} has {number} at {offset}, not {expected}")
        compared += len(found.numbers)
    _check_accepted(stored, offsets)
    return {"publications": compared, "channels": len(stored)}


def _check_accepted(stored: Mapping[str, StoredStream], offsets: Offsets) -> None:
    """What was acknowledged without its place must be there, unless newer events pushed it out."""
    for channel, accepted in offsets.unplaced().items():
        found = stored.get(channel)
        if found is None:
            raise BrokenPromise(f"{channel} is not in the file, and had {len(accepted)} events")
        missing = accepted - set(found.numbers)
        if found.first > 1:
            missing = offsets.since((channel, found.epoch), found.first, missing)
        if missing:
            raise BrokenPromise(f"{channel} lacks events that were acknowledged: {missing}")


def check_once(stored: Mapping[str, StoredStream]) -> None:
    """Look for an event that is there twice; a number of 0 is a check's own event.

    Raises:
        BrokenPromise: one is.
    """
    for channel, stream in stored.items():
        numbers = sorted(stream.numbers)
        if doubles := [one for one, other in pairwise(numbers) if one == other != 0]:
            raise BrokenPromise(f"{channel} has {doubles} twice")
