"""A durable broker for the time of a block: its file is opened, loaded, and closed at the end.

The tail of a file can be trusted if the last process closed it, or if every commit was synced, or
if the machine has not been started anew since. Else a loss of power may have taken commits that
subscribers have seen: then the generation grows, and with it every epoch, so that each of them is
told. That costs nothing for each stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.brokers.epochs import Epochs
from repeater.brokers.first_results import FirstResults
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.index import StoredStreams
from repeater.brokers.sqlite.journal import Journal, open_journal
from repeater.brokers.sqlite.records import Changes, publication_of
from repeater.errors import BrokerError
from repeater.private_files import make_private_folder

if TYPE_CHECKING:
    from repeater.brokers.sqlite.journal import Durability

_GENERATION: Final = "generation"
_CLEAN: Final = "clean"
_BOOT: Final = "boot"
_DURABILITY: Final = "durability"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@asynccontextmanager
async def open_sqlite_broker(
    folder: Path,
    *,
    durability: Durability = "disk",
    history_bytes: int = 268_435_456,
    history_channels: int = 250_000,
    idempotency_ttl: float = 300.0,
    idempotency_bytes: int = 67_108_864,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[SQLiteBroker]:
    """Open the file in a folder, and load it in a worker thread.

    Args:
        folder: Made if it is missing. One process at a time may use it.
        durability: What a commit survives.
        history_bytes: As of `MemoryBroker`.
        history_channels: As of `MemoryBroker`.
        idempotency_ttl: As of `MemoryBroker`.
        idempotency_bytes: As of `MemoryBroker`.
        now: Gives Unix seconds.

    Raises:
        BrokerError: the file cannot be opened or loaded; the text is one line.
    """

    def opened() -> tuple[Journal, StoredStreams, FirstResults]:
        make_private_folder(folder)
        journal = open_journal(folder, durability)
        try:
            meta = journal.meta()
            generation = _generation(meta)
            # Synced before anybody is told of the generation: a loss of power that undid it would
            # have the next start trust what it must not trust, or give the generation twice.
            journal.write_synced(
                Changes(
                    meta={
                        _GENERATION: str(generation),
                        _CLEAN: "",
                        _BOOT: _boot(),
                        _DURABILITY: durability,
                    }
                )
            )
            index = StoredStreams(
                byte_limit=history_bytes,
                limit=history_channels,
                now=now,
                epochs=Epochs(meta, f".{generation}" if generation else ""),
                generation=generation,
            )
            results = FirstResults(ttl=idempotency_ttl, byte_limit=idempotency_bytes, now=now)
            _load(journal, index, results)
        except BaseException:
            journal.close()
            raise
        return journal, index, results

    try:
        journal, index, results = await trio.to_thread.run_sync(opened)
    except (JournalError, OSError, msgspec.DecodeError) as error:
        raise BrokerError(str(error)) from None
    try:
        yield SQLiteBroker(journal, index, results)
    finally:
        with suppress(JournalError):
            journal.write(Changes(meta={_CLEAN: "1"}))
        journal.close()


def _generation(meta: dict[str, str]) -> int:
    generation = int(meta.get(_GENERATION, "0"))
    trusted = (
        not meta
        or meta.get(_CLEAN)
        or meta.get(_DURABILITY) == "disk"
        or (meta.get(_BOOT) and meta.get(_BOOT) == _boot())
    )
    return generation if trusted else generation + 1


def _boot() -> str:
    """The id of this start of the machine; empty where there is none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _load(journal: Journal, index: StoredStreams, results: FirstResults) -> None:
    streams = index.restore(journal.streams())
    for rows in journal.publications():
        for row in rows:
            stream = streams.get(row.stream)
            if stream is None:
                index.free_row(row.id)
                continue
            index.restore_row(
                stream,
                row.id,
                publication_of(stream.channel, stream.epoch, row.offset, row.body),
            )
    index.settle()
    for one in sorted(journal.results(), key=lambda one: one.until):
        results.keep((one.channel, one.key), one.position, one.until)
