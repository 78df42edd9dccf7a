"""A broker that can end and come back while its node lives: for an engine that lets go of its file.

Whoever has a `ReplaceableBroker` calls what is behind it now: the engine, or, while this one is
away, `_Away`, whose every answer is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

from repeater.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.brokers.contract import Broker, BrokerStatistics, EventSink, Outcome, Page
    from repeater.brokers.receipts import Answer
    from repeater.brokers.source_rows import SourceRow
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication, StreamPosition


class ReplaceableBroker:
    """Implements `Broker` by another one, which its owner may bar, end and replace."""

    def __init__(self, broker: Broker) -> None:
        self._broker: Broker = broker
        self._barred: Broker | None = None
        self._run = trio.CancelScope()
        self._ended = trio.Event()
        self._back = trio.Event()

    async def run(self, intake: EventSink) -> None:
        """Run one broker after the other, until cancelled or until one ends by itself."""
        while True:
            broker = self._barred or self._broker
            with self._run:
                await broker.run(intake)
            self._ended.set()
            if not self._run.cancelled_caught:
                return
            await self._back.wait()

    def bar(self, reason: str) -> None:
        """Answer every call with an error from now on; what is under way goes on."""
        self._barred = self._broker
        self._broker = _Away(reason, self._barred.statistics())

    async def end(self) -> None:
        """End the barred broker, when it has answered and handed on what it has taken.

        Not to be cancelled. Called while `run` runs.
        """
        assert self._barred is not None
        await self._barred.finish()
        self._back = trio.Event()
        self._run.cancel("it lets go of its file")
        await self._ended.wait()

    def put_back(self, broker: Broker | None = None) -> None:
        """Answer again: by the barred broker, or by another one after `end`."""
        assert self._barred is not None
        self._broker, self._barred = broker or self._barred, None
        if broker is not None:
            self._run, self._ended = trio.CancelScope(), trio.Event()
            self._back.set()

    async def finish(self) -> None:
        """See `Broker.finish`."""
        await self._broker.finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        """See `Broker.submit`."""
        return self._broker.submit(
            publication,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row,
        )

    def known_rows(self, source: str) -> Answer[Sequence[str]]:
        """See `Broker.known_rows`."""
        return self._broker.known_rows(source)

    def forget_rows(self, source: str, names: Sequence[str]) -> Answer[None]:
        """See `Broker.forget_rows`."""
        return self._broker.forget_rows(source, names)

    async def wait_room(self) -> None:
        """See `Broker.wait_room`."""
        broker = self._broker
        try:
            await broker.wait_room()
        except trio.ClosedResourceError:
            if broker is self._broker:
                raise
            # It is this broker that ended meanwhile, not the node: the next call says why.

    def announce(self, announcement: Announcement) -> None:
        """See `Broker.announce`."""
        self._broker.announce(announcement)

    def hold(self, channel: str) -> Answer[None]:
        """See `Broker.hold`."""
        return self._broker.hold(channel)

    def release(self, channel: str) -> None:
        """See `Broker.release`."""
        self._broker.release(channel)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        """See `Broker.history`."""
        return self._broker.history(channel, options, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Answer[None]:
        """See `Broker.remove_history`."""
        return self._broker.remove_history(channel)

    def outage(self) -> str:
        """See `Broker.outage`."""
        return self._broker.outage()

    def statistics(self) -> BrokerStatistics:
        """See `Broker.statistics`."""
        return self._broker.statistics()


class _Away:
    """Implements `Broker` for the time without one: nothing can be published or read."""

    def __init__(self, reason: str, last: BrokerStatistics) -> None:
        self._reason = reason
        self._last = last

    async def run(self, intake: EventSink) -> None:
        await trio.sleep_forever()

    async def finish(self) -> None:
        pass

    def submit(self, *_: object, **__: object) -> NoReturn:
        raise BrokerError(self._reason)

    async def wait_room(self) -> NoReturn:
        raise BrokerError(self._reason)

    def announce(self, announcement: Announcement) -> NoReturn:
        raise BrokerError(self._reason)

    def hold(self, channel: str) -> None:
        # What is published here, if anything ever is, comes to fan-out: nothing is missed.
        pass

    def release(self, channel: str) -> None:
        pass

    def history(self, *_: object, **__: object) -> NoReturn:
        raise BrokerError(self._reason)

    def known_rows(self, source: str) -> NoReturn:
        raise BrokerError(self._reason)

    def forget_rows(self, source: str, names: Sequence[str]) -> NoReturn:
        raise BrokerError(self._reason)

    def remove_history(self, channel: str) -> NoReturn:
        raise BrokerError(self._reason)

    def outage(self) -> str:
        return self._reason

    def statistics(self) -> BrokerStatistics:
        return self._last
