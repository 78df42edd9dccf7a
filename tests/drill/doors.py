"""Where the connections of subscribers and back ends go: to one server, or to any of several."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

Door = Callable[[], Awaitable[trio.SocketStream]]
"""Opens a connection. One client has it, and calls it again when its connection has ended."""
Doors = Callable[[], Door]
"""Makes a door for one more client."""

_CONNECTS = 3.0  # seconds: packets to a server that was cut off are dropped


def door_to(host: str, port: int) -> Doors:
    """All go to one server."""

    async def door() -> trio.SocketStream:
        return await _connection(host, port)

    return lambda: door


def doors_to(addresses: Sequence[tuple[str, int]], rng: Random) -> Doors:
    """Each goes to any of several servers, and at its next connection to another one."""

    def make() -> Door:
        return _Wanderer(addresses, Random(rng.random())).open

    return make


class _Wanderer:
    """One client, who never goes twice in a row to the same server."""

    def __init__(self, addresses: Sequence[tuple[str, int]], rng: Random) -> None:
        self._addresses = addresses
        self._rng = rng
        self._last: tuple[str, int] | None = None

    async def open(self) -> trio.SocketStream:
        others = [one for one in self._addresses if one != self._last]
        self._last = self._rng.choice(others or self._addresses)
        return await _connection(*self._last)


async def _connection(host: str, port: int) -> trio.SocketStream:
    """Raises:
    OSError: nobody answers.
    """
    try:
        with trio.fail_after(_CONNECTS):
            return await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise OSError("no answer") from None
