"""The places of a server with workers: limits on subscribers that hold over all of them.

The supervisor keeps the places (`supervision/places.py`), and a worker asks for each one, but only
where a limit is on: that is a message to and fro for each connection. Rule: a worker asks when all
other checks are passed, so that who would be refused anyway uses up no rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from repeater.brokers.control import Question
from repeater.clients.questions import Questions, encoded

if TYPE_CHECKING:
    from repeater.brokers.control import Control
    from repeater.options import LimitOptions


class WantedPlace(msgspec.Struct, frozen=True, array_like=True):
    """A place that is asked for, of a connection, of a user, or of both. Limits of 0 are off."""

    serial: int
    """Names the connection, for this worker."""
    address: str = ""
    """As `address_key` makes it; empty where addresses are not limited."""
    user: str = ""
    """Empty where users are not limited, or if it is not known yet."""
    counted: bool = False
    """Whether this is a new connection, and not one whose user became known."""
    connections: int = 0
    connections_per_address: int = 0
    connections_per_user: int = 0
    connection_rate: int = 0
    connection_burst: int = 0


class SharedPlaces:
    """One worker's way to the places of its server. Lives inside the node; needs no end."""

    def __init__(self, control: Control, questions: Questions) -> None:
        self._control = control
        self._questions = questions
        self._serial = 0

    def next_serial(self) -> int:
        """A number for a connection, which this worker gives to no other."""
        self._serial += 1
        return self._serial

    async def take(self, wanted: WantedPlace) -> str:
        """Ask for a place; return the name of the limit that refuses it, or the empty text.

        Cancelled, the place may be taken: the caller gives it back in any case.

        Raises:
            BrokerError: the supervisor does not answer.
        """
        return (await self._questions.ask_server("take_place", wanted)).decode()

    def give_back(self, serial: int) -> None:
        """Give back all that a connection holds; nothing if it holds nothing."""
        self._control.tell(Question("give_back_place", encoded(serial)))


def wanted_place(
    serial: int, limits: LimitOptions, *, address: str = "", user: str = "", counted: bool
) -> WantedPlace | None:
    """What to ask for; None if no limit is on that concerns it."""
    in_all = limits.connections or limits.connection_rate
    address = address if limits.connections_per_address else ""
    user = user if limits.connections_per_user else ""
    if not (counted and (in_all or address)) and not user:
        return None
    return WantedPlace(
        serial,
        address,
        user,
        counted,
        limits.connections,
        limits.connections_per_address,
        limits.connections_per_user,
        limits.connection_rate,
        limits.connection_burst or limits.connection_rate,
    )
