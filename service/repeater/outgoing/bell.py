"""What wakes the task that looks for rows: the database rings, or whoever makes room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from repeater.postgres.address import connect

NAME: Final = "repeater_outgoing"
"""What the database notifies when something was published."""

_RING: Final = b"SELECT pg_notify('%s', '')" % NAME.encode()


class Bell:
    """Rung any number of times, it wakes one task once. Lives inside a session."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        self._rung.set()

    async def wait(self) -> None:
        """Wait until it is rung, or was since the last wait. The caller sets the deadline."""
        await self._rung.wait()
        self._rung = trio.Event()

    async def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at each time that it rings."""
        while not reached():
            await self.wait()


async def ring_database(url: str, name: str, *, timeout: float) -> None:
    """Have the database notify all who listen, as somebody who publishes does.

    By a connection of its own, which ends at once: a pooler hands a notification on to whoever
    has the session just then, and so to him who notifies himself. The parameters are those of
    `connect`; the caller sets a deadline for the rest.

    Raises:
        LostError, RefusedError: as `connect` and `Pipe.ask`.
    """
    pipe = await connect(url, name, lambda _channel: None, timeout=timeout)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.run)
        await pipe.ask(_RING)
        nursery.cancel_scope.cancel("it has rung")
