"""A server that breaks promises, to see that the drill notices: its first word is how.

It drops or doubles a chunk now and then, behind all checks of the server's own, where only a
subscriber can notice that.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable

from repeater.cli.main import main
from repeater.fanout import repeater
from repeater.fanout.outbox import Outbox, send_to_all

_EVERY = 40  # chunks of fan-out


def spoil(times: int) -> None:
    """Have each fortieth chunk sent so often."""
    numbers = itertools.count(1)

    def spoilt(outboxes: Iterable[Outbox], chunk: bytes) -> None:
        for _ in range(times if next(numbers) % _EVERY == 0 else 1):
            send_to_all(outboxes, chunk)

    repeater.send_to_all = spoilt  # type: ignore[attr-defined]


if __name__ == "__main__":
    spoil({"loss": 0, "double": 2}[sys.argv.pop(1)])
    main()
