"""Which workers hold which channels, in the supervisor. All sync.

The engine holds a channel while a worker does. The application is told of the first worker's hold
(`channel_occupied`) and of the last one's release (`channel_vacated`), so it sees one server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.brokers.receipts import Receipt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.backend.contract import Events
    from repeater.brokers.contract import Broker
    from repeater.brokers.receipts import Answer
    from repeater.workers.backlog import Backlog

_NOBODY: Mapping[Backlog, None] = {}


class Holdings:
    """Lives inside an `Exchange`."""

    def __init__(self, broker: Broker, events: Events | None) -> None:
        self._broker = broker
        self._events = events
        self._wanted: dict[str, dict[Backlog, None]] = {}
        self.holders: dict[str, dict[Backlog, None]] = {}
        """The workers that get the events of a channel."""

    def __len__(self) -> int:
        """The number of channels that some worker wants."""
        return len(self._wanted)

    def hold(self, channel: str, backlog: Backlog) -> Answer[None]:
        """Have a worker get a channel's events once the engine has answered; idempotent.

        Raises:
            BrokerError: as `Broker.hold`.
        """
        answer = self._broker.hold(channel)
        wanted = self._wanted.get(channel)
        if wanted is None:
            wanted = self._wanted[channel] = {}
            if self._events is not None:
                self._events.channel_occupied(channel)
        wanted[backlog] = None
        if not isinstance(answer, Receipt):
            self._begin(channel, backlog)
            return None
        held: Receipt[None] = Receipt()

        def settle(outcome: Exception | None) -> None:
            # Before the worker is answered: what comes from now on is not in its history.
            if isinstance(outcome, Exception):
                self.release(channel, backlog)
            else:
                self._begin(channel, backlog)
            held.settle(outcome)  # type: ignore[arg-type]  # a receipt's answer

        answer.when_settled(settle)
        return held

    def _begin(self, channel: str, backlog: Backlog) -> None:
        if backlog in self._wanted.get(channel, _NOBODY):
            self.holders.setdefault(channel, {})[backlog] = None

    def release(self, channel: str, backlog: Backlog) -> None:
        """Note that a worker does not want a channel's events any more; idempotent."""
        _discard(self.holders, channel, backlog)
        if _discard(self._wanted, channel, backlog):
            self._broker.release(channel)
            if self._events is not None:
                self._events.channel_vacated(channel)


def _discard(of: dict[str, dict[Backlog, None]], channel: str, backlog: Backlog) -> bool:
    """Take one worker out of a channel; whether it was the last one."""
    found = of.get(channel)
    if found is None or found.pop(backlog, backlog) is not None or found:
        return False
    del of[channel]
    return True
