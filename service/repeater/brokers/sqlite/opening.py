"""A durable broker for the time of a block: its file is opened, loaded, and closed at the end.

The tail of a file can be trusted if the last process closed it, or if every commit was synced, or
if the machine has not been started anew since. Else a loss of power may have taken commits that
subscribers have seen: then the generation grows, and with it every epoch, so that each of them is
told. That costs nothing for each stream.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.brokers.epochs import Epochs
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.clock import LifetimeClock
from repeater.brokers.sqlite.denials import move_denials
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.index import StoredStreams, suffix_of
from repeater.brokers.sqlite.journal import Journal, open_journal
from repeater.brokers.sqlite.lock import hold_folder
from repeater.brokers.sqlite.records import Changes
from repeater.brokers.sqlite.results import StoredResults
from repeater.brokers.sqlite.rows import StoredRows
from repeater.brokers.sqlite.writer import Writer, open_writer
from repeater.errors import BrokerError, open_service_nursery
from repeater.log import get_logger
from repeater.private_files import make_private_folder

if TYPE_CHECKING:
    from repeater.brokers.sqlite.journal import Durability

_log = get_logger("history")

_GENERATION: Final = "generation"
_CLEAN: Final = "clean"
_BOOT: Final = "boot"
_DURABILITY: Final = "durability"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _StoppedError(Exception):
    """The load was cancelled."""


class _Kept(msgspec.Struct, frozen=True):
    """An opened file, and what was loaded of it."""

    journal: Journal
    index: StoredStreams
    results: StoredResults
    rows: StoredRows
    clock: LifetimeClock


@asynccontextmanager
async def open_sqlite_broker(
    folder: Path,
    *,
    durability: Durability = "disk",
    history_bytes: int = 268_435_456,
    history_channels: int = 250_000,
    history_disk_limit: int = 10_737_418_240,
    idempotency_ttl: float = 300.0,
    idempotency_bytes: int = 67_108_864,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[SQLiteBroker]:
    """Open the file in a folder, and load it in a worker thread.

    Cancelled while it loads, it stops within some milliseconds.

    Args:
        folder: Made if it is missing. One process at a time may use it.
        durability: What a commit survives.
        history_bytes: As of `MemoryBroker`.
        history_channels: As of `MemoryBroker`.
        history_disk_limit: The most bytes of the file, beside its log; beyond, the oldest
            publications are dropped as for `history_bytes`.
        idempotency_ttl: As of `MemoryBroker`.
        idempotency_bytes: As of `MemoryBroker`.
        now: The machine's clock, in Unix seconds.

    Raises:
        BrokerError: the file cannot be opened or loaded, or another process uses the folder; the
            text is one line.
    """
    stop = threading.Event()

    def opened() -> _Kept:
        journal = open_journal(folder, durability)
        try:
            move_denials(journal, folder)
            clock = LifetimeClock(now)
            index = _index(journal, durability, clock, history_bytes, history_channels)
            results = StoredResults(ttl=idempotency_ttl, byte_limit=idempotency_bytes, clock=clock)
            _load(journal, index, results, stop)
            rows = StoredRows()
            rows.restore(journal.terms(), journal.rows())
        except BaseException:
            journal.close()
            raise
        return _Kept(journal, index, results, rows, clock)

    with ExitStack() as stack:
        try:
            make_private_folder(folder)
            stack.enter_context(hold_folder(folder))
            writer = stack.enter_context(open_writer())
            kept = await _loaded(writer, opened, stop)
        except (JournalError, OSError, msgspec.DecodeError) as error:
            raise BrokerError(str(error)) from None
        broker = SQLiteBroker(
            kept.journal,
            kept.index,
            kept.results,
            kept.rows,
            kept.clock,
            writer,
            history_disk_limit,
        )
        try:
            yield broker
        finally:
            if not writer.abandoned:
                with trio.CancelScope(shield=True):  # some milliseconds
                    await writer.run(partial(_close, kept.journal))


def _close(journal: Journal) -> None:
    with suppress(JournalError):
        journal.write(Changes(meta={_CLEAN: "1"}))
    journal.close()


async def _loaded(writer: Writer, call: Callable[[], _Kept], stop: threading.Event) -> _Kept:
    """Run a call in the thread; a cancelled caller has it stop, and waits for its end."""

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stop.set()

    async with open_service_nursery() as nursery:
        nursery.start_soon(watch)
        with suppress(_StoppedError):
            return await writer.run(call)
        await trio.sleep_forever()  # It was cancelled, and says so here.
    raise AssertionError


def _index(
    journal: Journal, durability: Durability, clock: LifetimeClock, byte_limit: int, limit: int
) -> StoredStreams:
    """An empty index with the epochs of the file, and marks in the file that it is in use."""
    meta = journal.meta()
    generation = _generation(meta)
    marks = {
        _GENERATION: str(generation),
        _CLEAN: "",
        _BOOT: _boot(),
        _DURABILITY: durability,
    }
    # Synced before anybody is told of the generation: a loss of power that undid it would have the
    # next start trust what it must not trust, or give the generation twice.
    try:
        journal.write_synced(Changes(meta=marks))
    except JournalError as error:
        if not error.full:
            raise
        # The disk has been full since before this start: readers need the server all the same.
        journal.reserve.give_up()
        journal.write_synced(Changes(meta=marks))
        journal.reserve.renew()
    return StoredStreams(
        byte_limit=byte_limit,
        limit=limit,
        clock=clock,
        epochs=Epochs(meta, suffix_of(generation)),
    )


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


def _load(
    journal: Journal, index: StoredStreams, results: StoredResults, stop: threading.Event
) -> None:
    began = time.perf_counter()
    streams = index.restore(journal.streams())
    with _uncollected():
        for rows in journal.publications():
            if stop.is_set():
                raise _StoppedError
            index.restore_rows(streams, rows)
    index.settle()
    for one in sorted(journal.results(), key=lambda one: one.until):
        results.keep((one.channel, one.key), one.position, one.until)
    _log.info(
        "history is loaded",
        publications=index.rows,
        channels=len(index),
        seconds=round(time.perf_counter() - began, 1),
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away from the many objects that only come, and make no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
