"""Brokers that answer late, misbehave, or can be held: all have one in memory do the work."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from repeater.brokers.contract import BrokerStatistics, EventSink, Outcome, Page
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.receipts import Answer, Receipt
from repeater.brokers.source_rows import SourceRow
from repeater.errors import BrokerError, ReplyError
from repeater.options import ChannelOptions
from repeater.publication import (
    Announcement,
    Event,
    Publication,
    Rupture,
    StreamPosition,
)
from tests.engines import Gate, LateCalls, settle


class Sink:
    """Between broker and intake: hands on, or holds, what `fate` makes of each event."""

    def __init__(self, intake: EventSink, fate: Callable[[Event], Sequence[Event]]) -> None:
        self._intake = intake
        self._fate = fate
        self._held: list[Event] | None = None

    async def wait_room(self) -> None:
        await self._intake.wait_room()

    def check_room(self) -> None:
        self._intake.check_room()

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        for one in self._fate(event):
            if self._held is not None:
                self._held.append(one)
            else:
                self._intake.put_nowait(one)

    def hold(self) -> None:
        """Fan-out falls behind: nothing is handed on until `release`."""
        if self._held is None:
            self._held = []

    def lose(self, channel: str) -> list[Event]:
        """What is held of a channel, or of all, is lost, and the node is told; returns it."""
        lost = [one for one in self._held or () if channel in ("", one.channel)]
        if self._held is not None:
            self._held = [one for one in self._held if one not in lost]
        self._intake.put_nowait(Rupture(channel))
        return lost

    def release(self) -> None:
        held, self._held = self._held, None
        for event in held or ():
            self._intake.put_nowait(event)


class ForwardingBroker:
    """A broker that has a memory broker do everything; for brokers that differ in a few calls."""

    def __init__(self, memory: MemoryBroker | None = None) -> None:
        self.memory = memory or MemoryBroker()

    async def run(self, intake: EventSink) -> None:
        await self.memory.run(intake)

    async def finish(self) -> None:
        await self.memory.finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        return self.memory.submit(
            publication,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row,
        )

    def known_rows(self, source: str) -> Answer[Sequence[str]]:
        return self.memory.known_rows(source)

    def forget_rows(self, source: str, names: Sequence[str]) -> Answer[None]:
        self.memory.forget_rows(source, names)
        return None

    async def wait_room(self) -> None:
        await self.memory.wait_room()

    def announce(self, announcement: Announcement) -> None:
        self.memory.announce(announcement)

    def hold(self, channel: str) -> Answer[None]:
        self.memory.hold(channel)
        return None

    def release(self, channel: str) -> None:
        self.memory.release(channel)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        return self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Answer[None]:
        self.memory.remove_history(channel)
        return None

    def outage(self) -> str:
        return self.memory.outage()

    def statistics(self) -> BrokerStatistics:
        return self.memory.statistics()


class HeldHistory(ForwardingBroker):
    """A broker whose history is read, or answered, late, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        # By channel: before its history is read, and between that and the answer.
        self.before: defaultdict[str, Gate] = defaultdict(Gate)
        self.after: defaultdict[str, Gate] = defaultdict(Gate)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        receipt: Receipt[Page] = Receipt()

        def read() -> None:
            if self.failing:
                receipt.settle(BrokerError("history is down"))
                return
            page = self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)
            self.after[channel].when_open(lambda: settle(receipt, lambda: page))

        self.before[channel].when_open(read)
        return receipt


class TestBroker(HeldHistory):
    """A memory broker whose history and hand-over can be held, spoilt or made to fail."""

    __test__ = False  # no class of tests

    def __init__(self, fate: Callable[[Event], Sequence[Event]] = lambda event: (event,)) -> None:
        super().__init__()
        self.fate = fate
        self.sink: Sink

    async def run(self, intake: EventSink) -> None:
        self.sink = Sink(intake, lambda event: self.fate(event))
        await super().run(self.sink)


class LateTestBroker(TestBroker):
    """A `TestBroker` that publishes and holds channels later: its answers are all receipts."""

    __test__ = False

    def __init__(self, fate: Callable[[Event], Sequence[Event]] = lambda event: (event,)) -> None:
        super().__init__(fate)
        self._calls = LateCalls()

    async def run(self, intake: EventSink) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._calls.run)
            await super().run(intake)

    async def finish(self) -> None:
        await self._calls.finish()
        await super().finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        self._calls.check_open()

        async def call() -> Outcome:
            await self.memory.wait_room()
            return self.memory.submit(
                publication,
                options,
                idempotency_key=idempotency_key,
                skip_history=skip_history,
                row=row,
            )

        return self._calls.later(call)

    def hold(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.hold(channel)

        return self._calls.later(call)


class HeldChannels(ForwardingBroker):
    """A broker that answers late that it holds a channel. It notes the calls of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = Gate()
        self.calls: list[tuple[str, str]] = []

    def hold(self, channel: str) -> Answer[None]:
        self.calls.append(("hold", channel))
        return self.holding.answer(lambda: None)

    def release(self, channel: str) -> None:
        self.calls.append(("release", channel))

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        self.calls.append(("history", channel))
        return super().history(channel, options, since=since, limit=limit, reverse=reverse)


class LateAnswers(ForwardingBroker):
    """A broker that takes publications at once, and answers them when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        """The data of each publication, and the names of the other calls, in their order."""
        self.open: deque[tuple[Receipt[Outcome], Outcome]] = deque()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        outcome = self.memory.submit(
            publication,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row,
        )
        self.asked.append(bytes(publication.data).decode())
        receipt: Receipt[Outcome] = Receipt()
        self.open.append((receipt, outcome))
        return receipt

    def answer(self, count: int = 0, error: ReplyError | BrokerError | None = None) -> None:
        """Settle the oldest receipts, or all: with their positions, or with an error."""
        for _ in range(count or len(self.open)):
            receipt, outcome = self.open.popleft()
            receipt.settle(outcome if error is None else error)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        self.asked.append("history")
        return super().history(channel, options, since=since, limit=limit, reverse=reverse)


class LateBroker(ForwardingBroker):
    """A broker that carries out every call later, in order: its answers are all receipts.

    Its calls wait in a list without a bound, so it always has room.
    """

    def __init__(self, memory: MemoryBroker | None = None) -> None:
        super().__init__(memory)
        self._calls = LateCalls()
        self._intake: EventSink | None = None

    async def run(self, intake: EventSink) -> None:
        self._intake = intake
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.memory.run, intake)
            nursery.start_soon(self._calls.run)

    async def finish(self) -> None:
        await self._calls.finish()
        await self.memory.finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        self._check_open()

        async def call() -> Outcome:
            await self.memory.wait_room()
            return self.memory.submit(
                publication,
                options,
                idempotency_key=idempotency_key,
                skip_history=skip_history,
                row=row,
            )

        return self._calls.later(call)

    def known_rows(self, source: str) -> Answer[Sequence[str]]:
        async def call() -> Sequence[str]:
            return self.memory.known_rows(source)

        return self._calls.later(call)

    def forget_rows(self, source: str, names: Sequence[str]) -> Answer[None]:
        async def call() -> None:
            self.memory.forget_rows(source, names)

        return self._calls.later(call)

    async def wait_room(self) -> None:
        self._check_open()

    def _check_open(self) -> None:
        self._calls.check_open()
        if self._intake is not None:
            with suppress(trio.WouldBlock):
                self._intake.check_room()

    def announce(self, announcement: Announcement) -> None:
        self._check_open()

        async def call() -> None:
            await self.memory.wait_room()
            self.memory.announce(announcement)

        self._calls.later(call)

    def hold(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.hold(channel)

        return self._calls.later(call)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        async def call() -> Page:
            return self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)

        return self._calls.later(call)

    def remove_history(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.remove_history(channel)

        return self._calls.later(call)
