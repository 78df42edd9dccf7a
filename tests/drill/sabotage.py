"""A server that breaks promises, to see that the drill notices: its first word is how.

It drops or doubles a chunk now and then, behind all checks of the server's own, where only a
subscriber can notice that; or it does not write a row, which only the next start can notice; or
its publications have no identity, so that a stream which an engine has numbered anew looks right.

One of them breaks no promise: `deaf`, to every hundredth message of the engine's bus.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from unittest import mock

import msgspec

from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.records import Changes
from repeater.brokers.valkey.bus import Bus
from repeater.brokers.valkey.envelope import Uids
from repeater.brokers.valkey.holds import Held
from repeater.cli.main import main
from repeater.fanout import repeater
from repeater.fanout.outbox import Outbox, send_to_all

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


_HOW: Mapping[str, Callable[[], None]] = {
    "loss": partial(spoil, 0),
    "double": partial(spoil, 2),
    "forget": forget,
    "blind": be_blind,
    "deaf": be_deaf,
}

if __name__ == "__main__":
    _HOW[sys.argv.pop(1)]()
    main()
