"""An engine that goes down and comes back, as one behind a network does."""

from __future__ import annotations

import trio

from repeater.brokers.contract import Outcome, Page
from repeater.brokers.receipts import Answer
from repeater.brokers.source_rows import SourceRow
from repeater.errors import BrokerError
from repeater.options import ChannelOptions
from repeater.publication import Announcement, Publication, StreamPosition
from tests.brokers import HeldChannels

WHY = "bus: the engine does not answer"


class FailingBroker(HeldChannels):
    """Has one in memory do the work, except while it is `down`: then every call fails at once.

    A channel that could not be held is held when the engine is `back`, as the contract says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.wished: dict[str, None] = {}
        self.asked = trio.Event()
        """Set once a channel was to be held."""

    def back(self) -> None:
        """The engine has come back."""
        self.down = False
        for channel in self.wished:
            self.memory.hold(channel)
        self.wished.clear()

    def _check(self) -> None:
        if self.down:
            raise BrokerError(WHY)

    def outage(self) -> str:
        return WHY if self.down else ""

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        self._check()
        return super().submit(
            publication,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row,
        )

    async def wait_room(self) -> None:
        self._check()
        await super().wait_room()

    def announce(self, announcement: Announcement) -> None:
        self._check()
        super().announce(announcement)

    def hold(self, channel: str) -> Answer[None]:
        self.asked.set()
        if self.down:
            self.wished[channel] = None
        self._check()
        return super().hold(channel)

    def release(self, channel: str) -> None:
        self.wished.pop(channel, None)
        super().release(channel)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        self._check()
        return super().history(channel, options, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Answer[None]:
        self._check()
        return super().remove_history(channel)
