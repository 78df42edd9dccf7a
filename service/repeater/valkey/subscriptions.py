"""What is subscribed to on the bus of one partition, and who takes its messages."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from repeater.valkey.pipe import Lost, Tell, ignore, packed

if TYPE_CHECKING:
    from repeater.valkey.pipe import Pipe
    from repeater.valkey.primary import Primary

_TOGETHER: Final = 512  # names in one command

Taker = Callable[[bytes], None]
"""Takes the payload of one message of the bus. Never waits and never fails."""


def alive_channel(prefix: str, tag: str) -> bytes:
    """A channel of this process alone, for the message that shows that the bus is alive."""
    return f"{prefix}:{tag}alive:{secrets.token_hex(8)}".encode()


class Subscriptions:
    """Takers of messages, by their bus channels. Lives inside `Servers`."""

    def __init__(self, subscribe: str, unsubscribe: str) -> None:
        """Subscribe by SUBSCRIBE and UNSUBSCRIBE, or by those for shards."""
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self.takers: dict[bytes, Taker] = {}
        """Everything that is subscribed to, or will be when the server has confirmed it."""

    def add(self, bus: Pipe, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """Subscribe; nothing is kept of what fails.

        Raises:
            Lost: the bus has ended, and nothing was sent.
        """

        def told(answer: object) -> None:
            if answer is not None:
                for channel, taker in takers.items():
                    if self.takers.get(channel) is taker:
                        del self.takers[channel]
            tell(answer)

        bus.order(self._commands(self._subscribe, takers), told)
        self.takers.update(takers)

    def add_again(self, bus: Pipe, tell: Tell) -> None:
        """Subscribe to everything, on a new connection.

        Raises:
            Lost: the bus has ended, and nothing was sent.
        """
        bus.order(self._commands(self._subscribe, self.takers), tell)

    def remove(self, primary: Primary | None, channels: Iterable[bytes]) -> None:
        """Unsubscribe at a primary; what ended with its connection is gone already."""
        gone = [channel for channel in channels if self.takers.pop(channel, None) is not None]
        if primary is not None and gone:
            # If the connection has ended, so have all its subscriptions.
            with suppress(Lost):
                primary.bus.order(self._commands(self._unsubscribe, gone), ignore)

    @staticmethod
    def _commands(verb: str, channels: Iterable[bytes]) -> bytes:
        names = iter(channels)
        commands = []
        while some := tuple(islice(names, _TOGETHER)):
            commands.append(packed(verb, *some))
        return b"".join(commands)
