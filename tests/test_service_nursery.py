"""Whose errors come out of the library's context managers: the block's as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.memory import MemoryBroker
from repeater.config import CurrentSettings, Settings
from repeater.errors import (
    FORCE_DISCONNECT,
    BrokerError,
    RepeaterError,
    ReplyError,
    open_service_nursery,
)
from repeater.node import Node, open_node
from repeater.serving.assembly import open_assembly
from repeater.serving.server import open_server
from repeater.subscriber import SubscriberError, open_subscriber
from repeater.testing import MemoryTransport, connect, open_test_node

Open = Callable[[], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def open_connected() -> AsyncIterator[None]:
    async with open_node() as node, connect(node, MemoryTransport(), ["c"]):
        yield


@asynccontextmanager
async def open_subscribed() -> AsyncIterator[None]:
    settings = Settings(dev=True, port=0)
    async with (
        open_server(settings) as server,
        open_subscriber(f"http://127.0.0.1:{server.port}", ["c"]),
    ):
        yield


OPEN: dict[str, Open] = {
    "open_service_nursery": open_service_nursery,
    "open_node": open_node,
    "open_test_node": open_test_node,
    "connect": open_connected,
    "open_assembly": lambda: open_assembly(CurrentSettings(Settings())),
    "open_server": lambda: open_server(Settings(port=0)),
    "open_subscriber": open_subscribed,
}


@pytest.fixture(params=OPEN)
def opened(request: pytest.FixtureRequest) -> Open:
    return OPEN[request.param]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        KeyboardInterrupt(),
        ExceptionGroup("mine", [ValueError("mine")]),
        ExceptionGroup("mine", [ExceptionGroup("mine too", [ValueError(), OSError()])]),
    ],
    ids=repr,
)
async def test_an_error_of_the_block_comes_out_as_it_is(opened: Open, error: BaseException) -> None:
    """The very exception, single or a group, with no other in its context."""
    with pytest.raises(type(error)) as caught:  # noqa: PT012
        async with opened():
            await wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert caught.traceback[-1].name == "test_an_error_of_the_block_comes_out_as_it_is"


async def test_a_cancelled_block_is_only_cancelled(opened: Open) -> None:
    """A scope around it that is cancelled ends it, and nothing comes out."""
    with trio.CancelScope() as scope:
        async with opened():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_error_beside_a_cancellation_from_outside(opened: Open) -> None:
    """A group of the block's own loses its Cancelled to its scope and keeps the rest."""

    async def fail_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with pytest.RaisesGroup(ValueError), trio.CancelScope() as scope:
        async with opened(), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_at_the_end)
            await wait_all_tasks_blocked()
            scope.cancel()


class CrashingBroker(MemoryBroker):
    """Crashes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.crash = trio.Event()

    async def run(self, intake: object) -> None:
        await self.crash.wait()
        raise ZeroDivisionError


async def test_a_crashing_task_alone_is_loud(autojump_clock: MockClock) -> None:
    """A bug in one of the node's tasks ends the block; its group comes out."""
    broker = CrashingBroker()
    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with open_node(broker=broker):
            broker.crash.set()
            await trio.sleep_forever()


@pytest.mark.parametrize("error", [ValueError(), ExceptionGroup("mine", [ValueError()])], ids=repr)
async def test_both_come_as_a_group(error: Exception, autojump_clock: MockClock) -> None:
    """The block's error first, and whole; then the crash of the node's task."""
    broker = CrashingBroker()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with open_node(broker=broker):
            broker.crash.set()
            try:
                await trio.sleep_forever()
            finally:
                raise error
    assert caught.value.exceptions[0] is error
    (crash,) = caught.value.exceptions[1:]
    assert isinstance(crash, ExceptionGroup)
    assert isinstance(crash.exceptions[0], ZeroDivisionError)


async def test_a_crash_while_the_node_ends_is_not_lost(autojump_clock: MockClock) -> None:
    """A task that crashes after the block has failed is reported beside the block's error."""

    class Late(MemoryBroker):
        async def run(self, intake: object) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    with pytest.RaisesGroup(ValueError, pytest.RaisesGroup(ZeroDivisionError)):
        async with open_node(broker=Late()):
            await wait_all_tasks_blocked()
            raise ValueError


async def test_the_nodes_tasks_end_with_the_block() -> None:
    """Whatever the block raised, none of the nursery's tasks is left."""
    ended = trio.Event()

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(ValueError, match=r"^mine$"):  # noqa: PT012
        async with open_service_nursery() as nursery:
            nursery.start_soon(serve)
            await wait_all_tasks_blocked()
            raise ValueError("mine")
    assert ended.is_set()


async def test_what_fails_at_the_start_is_no_group() -> None:
    """A task that fails before the block begins raises its own error."""

    class Refusing:
        async def load(self) -> None:
            raise BrokerError("unreadable")

    with pytest.raises(BrokerError, match="unreadable"):
        async with open_node(denials=Refusing()):  # type: ignore[arg-type]
            pass


async def test_what_the_server_says_at_last_is_no_group() -> None:
    """A subscriber that is told to stay away raises SubscriberError, though the block waits."""
    settings = Settings(dev=True, port=0)
    async with open_server(settings) as server:
        with pytest.raises(SubscriberError, match="3503"):  # noqa: PT012
            async with open_subscriber(f"http://127.0.0.1:{server.port}", ["c"]):
                disconnect_all(server.node)
                await trio.sleep_forever()


async def test_the_servers_last_word_beside_an_error_of_the_block() -> None:
    """Both come as a group."""
    settings = Settings(dev=True, port=0)
    async with open_server(settings) as server:
        with pytest.RaisesGroup(ValueError, SubscriberError):
            async with open_subscriber(f"http://127.0.0.1:{server.port}", ["c"]):
                disconnect_all(server.node)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError


def disconnect_all(node: Node) -> None:
    for client in tuple(node.registry.clients):
        client.disconnect(FORCE_DISCONNECT)


def test_one_base() -> None:
    """Whoever catches RepeaterError catches what every part of the library raises."""
    for error in (ReplyError, BrokerError, SubscriberError):
        assert issubclass(error, RepeaterError)
