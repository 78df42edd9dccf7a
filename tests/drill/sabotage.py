"""A server that breaks promises, to see that the drill notices: its first word is how.

It drops or doubles a chunk now and then, behind all checks of the server's own, where only a
subscriber can notice that; or it does not write a row, which only the next start can notice.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from unittest import mock

import msgspec

from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.records import Changes
from repeater.cli.main import main
from repeater.fanout import repeater
from repeater.fanout.outbox import Outbox, send_to_all

_EVERY = 40  # chunks of fan-out
_ROWS = 500  # publications


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


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if how == "forget":
        forget()
    else:
        spoil({"loss": 0, "double": 2}[how])
    main()
