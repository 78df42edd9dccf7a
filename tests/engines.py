"""Answers that come late, and presence stores that give such answers, or fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import trio

from repeater.brokers.memory_presence import MemoryPresence
from repeater.brokers.receipts import Answer, Receipt
from repeater.errors import BrokerError, ReplyError
from repeater.publication import (
    ClientInfo,
)

T = TypeVar("T")


class Gate:
    """Something that may be shut for a while. Callbacks wait for it in their order."""

    def __init__(self) -> None:
        self._is_open = True
        self._waiting: deque[Callable[[], None]] = deque()

    def shut(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        while self._waiting and self._is_open:
            self._waiting.popleft()()

    def when_open(self, callback: Callable[[], None]) -> None:
        """Call it as soon as the gate is open: at once, or in `open`."""
        self._waiting.append(callback)
        if self._is_open:
            self.open()

    def answer(self, call: Callable[[], T]) -> Receipt[T]:
        """Carry a call out as soon as the gate is open, and settle its receipt."""
        receipt: Receipt[T] = Receipt()
        self.when_open(lambda: settle(receipt, call))
        return receipt


def settle(receipt: Receipt[T], call: Callable[[], T]) -> None:
    """Give a receipt what a call returns, or its error."""
    try:
        receipt.settle(call())
    except (ReplyError, BrokerError) as error:
        receipt.settle(error)


class LateCalls:
    """Carries calls out one after the other, each later than it was asked for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Receipt[Any], Callable[[], Awaitable[Any]]]] = deque()
        self._asked = trio.lowlevel.ParkingLot()
        self._finished = False
        self._empty = trio.Event()

    def later(self, call: Callable[[], Awaitable[T]]) -> Receipt[T]:
        """Ask for a call; its receipt."""
        receipt: Receipt[T] = Receipt()
        self._waiting.append((receipt, call))
        self._asked.unpark_all()
        return receipt

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` once `finish` was called."""
        if self._finished:
            raise trio.ClosedResourceError

    async def finish(self) -> None:
        """Wait until all calls are carried out."""
        self._finished = True
        while self._waiting:
            self._empty = trio.Event()
            await self._empty.wait()

    async def run(self) -> None:
        """Carry calls out until cancelled. What is left over then fails."""
        try:
            while True:
                while not self._waiting:
                    await self._asked.park()
                await trio.lowlevel.checkpoint()
                receipt, call = self._waiting[0]
                try:
                    answer = await call()
                except trio.ClosedResourceError:
                    answer = BrokerError("the node has ended")
                except (ReplyError, BrokerError) as error:
                    answer = error
                self._waiting.popleft()
                receipt.settle(answer)
                if not self._waiting:
                    self._empty.set()
        finally:
            for receipt, _ in self._waiting:
                receipt.settle(BrokerError("the engine has ended"))


class ForwardingPresence:
    """A presence store that has one in memory do everything, as `ForwardingBroker`."""

    def __init__(self) -> None:
        self.memory = MemoryPresence()

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        self.memory.add(channel, info)
        return None

    def remove(self, channel: str, client: str) -> Answer[None]:
        self.memory.remove(channel, client)
        return None

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        return self.memory.members(channel)

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        return self.memory.count(channel)


class LatePresence:
    """A presence store that carries out every call later, in order. Whoever opens it runs it."""

    def __init__(self) -> None:
        self.memory = MemoryPresence()
        self._calls = LateCalls()

    async def run(self) -> None:
        await self._calls.run()

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        async def call() -> None:
            self.memory.add(channel, info)

        return self._calls.later(call)

    def remove(self, channel: str, client: str) -> Answer[None]:
        async def call() -> None:
            self.memory.remove(channel, client)

        return self._calls.later(call)

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        async def call() -> Mapping[str, ClientInfo]:
            return self.memory.members(channel)

        return self._calls.later(call)

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        async def call() -> tuple[int, int]:
            return self.memory.count(channel)

        return self._calls.later(call)


class FailingPresence:
    """A presence store that is down."""

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        raise BrokerError("presence is down")

    def remove(self, channel: str, client: str) -> Answer[None]:
        raise BrokerError("presence is down")

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        raise BrokerError("presence is down")

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        raise BrokerError("presence is down")
