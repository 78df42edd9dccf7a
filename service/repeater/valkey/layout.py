"""Asks a cluster who has what: a server that is connected, or any that is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import sample
from typing import TYPE_CHECKING, Final

import trio

from repeater.valkey.dial import TIMEOUT, answer_to, dial
from repeater.valkey.pipe import Lost, Refused
from repeater.valkey.slots import owners_of

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting
    from repeater.valkey.pipe import Pipe
    from repeater.valkey.url import Address

_DIALED: Final = 8  # servers that are dialed at once

Owners = list["Address | None"]
"""The primary of each partition."""


class Layout:
    """Lives inside a cluster."""

    def __init__(self, seeds: Sequence[Address], greeting: Greeting) -> None:
        """Ask one of `seeds`, unless a connection is there already."""
        self._seeds = seeds
        self._greeting = greeting

    async def read(
        self, connected: Sequence[tuple[Address, Pipe]], known: Iterable[Address]
    ) -> Owners:
        """Ask one of the connections, else others that are known, within about 2 s.

        Raises:
            Lost: nobody has answered; the text says why, of the last one.
        """
        for address, pipe in sample(connected, min(2, len(connected))):
            with trio.move_on_after(TIMEOUT / 2):
                try:
                    return await _asked(address, pipe)
                except (Lost, Refused):
                    continue
        return await self._dial({*self._seeds, *known})

    async def _dial(self, addresses: set[Address]) -> Owners:
        some = sample(sorted(addresses, key=str), min(_DIALED, len(addresses)))
        found: list[Owners] = []
        failures: list[str] = []
        async with trio.open_nursery() as nursery:

            async def ask(address: Address) -> None:
                try:
                    with trio.fail_after(1.5 * TIMEOUT):
                        async with dial(address, self._greeting) as pipe:
                            found.append(await _asked(address, pipe))
                    nursery.cancel_scope.cancel("a server has answered")
                except (Lost, Refused) as error:
                    failures.append(str(error))
                except trio.TooSlowError:
                    failures.append("no answer in time")

            for one in some:
                nursery.start_soon(ask, one)
        if found:
            return found[0]
        raise Lost(failures[-1])


async def _asked(address: Address, pipe: Pipe) -> Owners:
    """What a server says. The caller sets the deadline.

    Raises:
        Lost: it says nothing of any partition, as one that was taken out of its cluster; or the
            connection has ended.
        Refused: it is not of a cluster.
    """
    owners = owners_of(await answer_to(pipe, "CLUSTER", "SLOTS"), address)
    if not any(owners):
        raise Lost("the server knows no primary of the cluster")
    return owners
