"""Where the primary is: at an address that never changes, or where Sentinels say.

All Sentinels are asked at once. What most of them say counts at once. If no answer has that many
votes within the deadline, the newest counts: the one that was decided last, by its epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.valkey.dial import TIMEOUT, Waited, dial
from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.url import Address

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting

_DEADLINE: Final = 1.5 * TIMEOUT  # for a connection and two answers


class Locator(Protocol):
    """Knows where a primary is."""

    async def find(self) -> Address:
        """Where it is, or was told to be last.

        Raises:
            Lost: nobody knows.
        """

    async def has_moved(self, address: Address) -> bool:
        """Whether it certainly is not at this address any more. Never fails."""


class OneAddress:
    """The `Locator` of a server that is where it is."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def find(self) -> Address:
        """The address."""
        return self._address

    async def has_moved(self, address: Address) -> bool:
        """It has not."""
        return False


class Sentinels:
    """The `Locator` of a primary that Sentinels watch."""

    def __init__(self, addresses: Sequence[Address], name: str, greeting: Greeting) -> None:
        """Ask these Sentinels for the primary that they call `name`; greet them so."""
        self._addresses = addresses
        self._name = name
        self._greeting = greeting

    async def find(self) -> Address:
        """See `Locator`."""
        poll = await self._poll()
        if poll.newest is None:
            raise Lost(f"no Sentinel knows the primary: {poll.failure}")
        return poll.most or poll.newest

    async def has_moved(self, address: Address) -> bool:
        """See `Locator`: most Sentinels name another address."""
        most = (await self._poll()).most
        return most is not None and most != address

    async def _poll(self) -> _Poll:
        poll = _Poll(len(self._addresses))
        with trio.move_on_after(_DEADLINE):
            async with trio.open_nursery() as nursery:
                for one in self._addresses:
                    nursery.start_soon(self._ask, one, poll)
                await poll.decided.wait()
                nursery.cancel_scope.cancel("enough Sentinels have answered")
        return poll

    async def _ask(self, address: Address, poll: _Poll) -> None:
        try:
            async with dial(address, self._greeting) as pipe:
                where, state = Waited(), Waited()
                name = self._name
                pipe.ask(packed("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), where.tell)
                pipe.ask(packed("SENTINEL", "MASTER", name), state.tell)
                found = _address_in(await where.answer())
                poll.take(found, _epoch_in(await state.answer()))
        except (Lost, Refused) as error:
            poll.fail(str(error))


class _Poll:
    """The answers of all Sentinels."""

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._left = asked
        self._votes: Counter[Address] = Counter()
        self._epoch = -1
        self.decided = trio.Event()
        self.most: Address | None = None
        self.newest: Address | None = None
        self.failure = "no answer in time"

    def take(self, address: Address, epoch: int) -> None:
        self._votes[address] += 1
        if epoch > self._epoch:
            self._epoch, self.newest = epoch, address
        if 2 * self._votes[address] > self._asked:
            self.most = address
            self.decided.set()
        self._count_down()

    def fail(self, why: str) -> None:
        self.failure = why
        self._count_down()

    def _count_down(self) -> None:
        self._left -= 1
        if not self._left:
            self.decided.set()


def _address_in(answer: object) -> Address:
    """Read the answer to GET-MASTER-ADDR-BY-NAME.

    Raises:
        Lost: the Sentinel does not know the name.
    """
    match answer:
        case [bytes(host), bytes(port)]:
            with suppress(ValueError):
                return Address(host.decode(), int(port))
    raise Lost("the Sentinel does not know this name")


def _epoch_in(answer: object) -> int:
    """When the primary was chosen; Redis 6 answers a list, others a map."""
    with suppress(ValueError, TypeError, OverflowError):  # if a server answers anything else
        if isinstance(answer, list):
            answer = dict(zip(answer[::2], answer[1::2], strict=False))
        if isinstance(answer, Mapping):
            return int(answer.get(b"config-epoch", 0))
    return 0
