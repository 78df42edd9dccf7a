"""A server that breaks promises, to see that the drill notices: its first word is how.

It drops or doubles a chunk now and then, behind all checks of the server's own, where only a
subscriber can notice that; or it does not write a row, which only the next start can notice; or
its publications have no identity, so that a stream which an engine has numbered anew looks right;
or it publishes the rows of a database without their names, or looks for greater numbers only.

One of them breaks no promise: `deaf`, to every hundredth message of the engine's bus.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import msgspec

from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.records import Changes
from repeater.brokers.valkey.bus import Bus
from repeater.brokers.valkey.envelope import Uids
from repeater.brokers.valkey.holds import Held
from repeater.cli.main import main
from repeater.fanout import repeater
from repeater.fanout.outbox import Outbox, send_to_all
from repeater.outgoing.session import Look, Session

_EVERY = 40  # chunks of fan-out
_ROWS = 500  # publications
_MESSAGES = 100  # of the bus


def spoil(times: int) -> None:
    """Have each fortieth chunk sent so often."""
    numbers = itertools.count(1)

    def spoilt(outboxes: Iterable[Outbox], chunk: bytes) -> None:
        for _ in range(times if next(numbers) % _EVERY == 0 else 1):
            send_to_all(outboxes, chunk)

    repeater.send_to_all = spoilt  # type: ignore[attr-defined]


def forget() -> None:
    """Have a publication in five hundred acknowledged, and not kept."""
    numbers, write = itertools.count(1), Journal.write

    def forgetful(self: Journal, changes: Changes) -> None:
        kept = [one for one in changes.publications if next(numbers) % _ROWS]
        write(self, msgspec.structs.replace(changes, publications=kept))

    mock.patch.object(Journal, "write", forgetful).start()


def be_blind() -> None:
    """Give all publications the same identity."""
    mock.patch.object(Uids, "next", return_value=bytes(8)).start()


def be_deaf() -> None:
    """Have some messages of the bus lost."""
    numbers, take = itertools.count(1), Bus._take

    def deaf(self: Bus, held: Held, payload: bytes) -> None:
        if next(numbers) % _MESSAGES:
            take(self, held, payload)

    mock.patch.object(Bus, "_take", deaf).start()


def forget_rows() -> None:
    """Publish the rows of a database without their names."""
    submit = SQLiteBroker.submit

    def nameless(self: SQLiteBroker, *arguments: Any, row: object, **more: Any) -> Any:
        return submit(self, *arguments, **more)

    mock.patch.object(SQLiteBroker, "submit", nameless).start()


def take_greater() -> None:
    """Take the rows of a database whose number is greater than the last one."""
    take, last = Session.take, 0

    async def greater(self: Session, seen: bytes | None, *arguments: Any, **more: Any) -> Look:
        nonlocal last
        look = await take(self, seen, *arguments, **{**more, "again": False})
        rows = [row for row in look.rows if row.id > last]
        last = max([last, *(row.id for row in rows)])
        return Look(rows, look.seen)

    mock.patch.object(Session, "take", greater).start()


_HOW: Mapping[str, Callable[[], None]] = {
    "loss": partial(spoil, 0),
    "double": partial(spoil, 2),
    "forget": forget,
    "blind": be_blind,
    "deaf": be_deaf,
    "nameless": forget_rows,
    "greater": take_greater,
}

if __name__ == "__main__":
    _HOW[sys.argv.pop(1)]()
    main()
