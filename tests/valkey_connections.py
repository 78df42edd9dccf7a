"""Connections of the engine's client for tests, and what listens to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from repeater.valkey.opening import open_servers
from repeater.valkey.servers import Listener, Servers
from repeater.valkey.slots import PARTITIONS
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS


class Log:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self._came = trio.Event()
        self.room = trio.Event()
        self.room.set()

    def up(self, partitions: Sequence[int]) -> None:
        self._note("up")

    def down(self, partitions: Sequence[int]) -> None:
        self._note("down")

    async def wait_room(self) -> None:
        await self.room.wait()

    def _note(self, what: str) -> None:
        self.news.append(what)
        self._came.set()
        self._came = trio.Event()

    async def wait(self, *news: str) -> None:
        with trio.fail_after(LOOP_ANSWERS):
            while self.news != [*news]:
                await self._came.wait()


class First:
    """A listener that waits for the first news."""

    def __init__(self) -> None:
        self.came = trio.Event()

    def up(self, partitions: Sequence[int]) -> None:
        self.came.set()

    def down(self, partitions: Sequence[int]) -> None:
        pass

    async def wait_room(self) -> None:
        pass


@asynccontextmanager
async def connected(
    url: str, listener: Listener | None = None, timeout: float = 2.0
) -> AsyncIterator[Servers]:
    """Servers of which at least one is up."""
    first = First()
    servers = open_servers([parse_url(url)], timeout=timeout)
    for one in (first, listener):
        if one is not None:
            servers.add(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(servers.run)
        with trio.fail_after(LOOP_ANSWERS):
            await first.came.wait()
        yield servers
        nursery.cancel_scope.cancel()


class Heard:
    """What takers got, and answers."""

    def __init__(self) -> None:
        self.all: list[object] = []
        self._came = trio.Event()

    def __call__(self, one: object) -> None:
        self.all.append(one)
        self._came.set()
        self._came = trio.Event()

    async def wait_number(self, number: int) -> None:
        with trio.fail_after(LOOP_ANSWERS):
            while len(self.all) < number:
                await self._came.wait()

    async def wait(self, *expected: object) -> None:
        with trio.fail_after(LOOP_ANSWERS):
            while self.all != [*expected]:
                await self._came.wait()


class States:
    """A listener that knows which partitions are up, and what was told of them."""

    def __init__(self) -> None:
        self.up_now: set[int] = set()
        self.news: list[tuple[str, int]] = []
        self._came = trio.Event()

    def up(self, partitions: Sequence[int]) -> None:
        assert self.up_now.isdisjoint(partitions)
        self.up_now.update(partitions)
        self._note("up", partitions)

    def down(self, partitions: Sequence[int]) -> None:
        assert self.up_now.issuperset(partitions)
        self.up_now.difference_update(partitions)
        self._note("down", partitions)

    def _note(self, what: str, partitions: Sequence[int]) -> None:
        self.news += [(what, partition) for partition in partitions]
        self._came.set()
        self._came = trio.Event()

    async def wait_room(self) -> None:
        pass

    async def wait(self, *, up: int = PARTITIONS) -> None:
        with trio.fail_after(PROCESS_STARTS):
            while len(self.up_now) != up:
                await self._came.wait()

    async def wait_news(self, *news: tuple[str, int]) -> None:
        with trio.fail_after(PROCESS_STARTS):
            while self.news != [*news]:
                await self._came.wait()


def key_in(client: Servers, partition: int, name: str) -> bytes:
    return f"{client.tag(partition)}{name}".encode()
