"""What every part of a worker's node needs of the link: to ask the supervisor, and to tell it.

While the supervisor is silent or gone, a call is refused at once. Calls that are under way stay
open while it is silent, because their callers have deadlines; when it is gone they fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.workers.down import SupervisorBeat
from repeater.workers.questions import OTHER, Questions

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.brokers.receipts import Receipt
    from repeater.workers.link import Link
    from repeater.workers.messages import Message

_CALLS: Final = 4_096  # submissions and announcements that may be under way
_CALL_BYTES: Final = 8 * 1024 * 1024  # their weight


class Calls:
    """Lives inside a `WorkerLink`."""

    def __init__(self, link: Link, silence: float) -> None:
        """Refuse calls after so many seconds without a beat of the supervisor."""
        self._link = link
        self._silence = silence
        self.window = Window(_CALLS, _CALL_BYTES)
        """The submissions and announcements under way."""
        self.open = Questions(self.window)
        """The calls that are not answered yet."""
        self.told = SupervisorBeat("", BrokerStatistics(), None)
        """What the supervisor's last beat said."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait to be sent."""
        return self._link.waiting_bytes

    def tell(self, message: Message) -> None:
        """Send a message that has no answer; after the end of the link it is dropped."""
        self._link.send(message)

    def ask(
        self, call: Callable[..., Message], *fields: object, weight: int = OTHER
    ) -> Receipt[Any]:
        """Send a call, made of its serial and these fields; its receipt.

        `weight` is as for `Questions.add`.

        Raises:
            BrokerError: the supervisor is gone or silent; nothing was sent.
        """
        self.check()
        serial, receipt = self.open.add(weight)
        self._link.send(call(serial, *fields))
        return receipt

    def check(self) -> None:
        """Refuse a call that would not be answered.

        Raises:
            BrokerError: the supervisor is gone or silent.
        """
        if self._link.end or self._link.silence >= self._silence:
            raise BrokerError(self.outage())

    def outage(self) -> str:
        """Why the supervisor, or its broker, is not available now; empty if it is."""
        if self._link.end:
            return "the supervisor is gone"
        if self._link.silence >= self._silence:
            return "the supervisor is silent"
        return self.told.outage

    def fail_all(self) -> None:
        """Fail what is open, because the link has ended."""
        self.open.fail_all(BrokerError(self.outage()))
