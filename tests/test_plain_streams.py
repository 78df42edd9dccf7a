"""`test_streams` with plain clients that get envelopes: what each id says is what was heard.

A client comes back with its last id, or begins anew at the start or a few events back. Whatever
happens to its server, it hears every offset once and in order, or a reset names the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from repeater.access.grants import NOTHING_GRANTED, ConnectionGrant
from repeater.clients.client import Client
from repeater.clients.plain import Wanted, listening
from repeater.clients.since import parse_since, positions_of
from repeater.errors import CONNECTION_CLOSED, INSUFFICIENT_STATE
from repeater.fanout.rewind import Rewind
from repeater.options import NodeOptions
from repeater.protocol.event_messages import EVENT_MESSAGES_ASGI
from repeater.protocol.sse.event_id import parse_event_id
from repeater.publication import Event
from repeater.testing import MemoryTransport
from tests.brokers import LateTestBroker, TestBroker
from tests.deadlines import PROCESS_STARTS
from tests.stream_worlds import (
    CHANNELS,
    CRAMPED,
    OPTIONS,
    RUPTURES,
    STEPS,
    Subscriber,
    WorkersWorld,
    World,
    in_order,
    run,
)

PATIENCE = 1.5  # seconds; `plain._PATIENCE` and some more


class Reader(Subscriber):
    """Hears both channels; `since` is what it says without an id, or, for "", nothing."""

    server_side = True

    def __init__(self, world: World, since: str, *, ready: bool) -> None:
        super().__init__(world)
        self.since = since
        self.ready = ready
        self.last_id = ""
        self.begun = True
        self.forgets = False

    def go_online(self) -> None:
        if not self.online:
            self.online, self.begun = True, False
            self.transport, self._read = MemoryTransport(EVENT_MESSAGES_ASGI), 0
            self.world.nursery.start_soon(self._listen)

    def subscribe(self, _channel: str) -> None:
        """Both are subscribed at once."""

    def unsubscribe(self, _channel: str) -> None:
        """Instead, leave for good: the next time this is another client."""
        self.forgets = self.online
        self.go_offline()

    def _offline(self) -> None:
        super()._offline()
        if self.forgets:
            self.last_id, self.forgets = "", False
            for stream in self.streams.values():
                stream.offset, stream.epoch, stream.known = 0, "", False

    def _wanted(self, unix_time: float) -> Wanted:
        channels, grant = dict.fromkeys(CHANNELS, NOTHING_GRANTED), ConnectionGrant()
        if self.last_id:
            since = positions_of(self.last_id, CHANNELS)
            return Wanted(grant=grant, channels=channels, since=since, envelope=True)
        begin = parse_since(self.since, CHANNELS, unix_time)
        rewind = begin if isinstance(begin, Rewind) else None
        return Wanted(grant=grant, channels=channels, rewind=rewind, envelope=True)

    async def _listen(self) -> None:
        node, transport = self.world.next_node(), self.transport
        with trio.CancelScope() as scope:
            client = Client(node.registry, transport, scope, ready=self.ready)
            self._hang_up = lambda: client.disconnect(CONNECTION_CLOSED)
            try:
                async with listening(node, client, self._wanted(node.unix_time())):
                    await trio.sleep_forever()
            finally:
                await client.leave()
        if transport is self.transport:
            self._offline()
        if transport.closed_with is not None:
            assert transport.closed_with == INSUFFICIENT_STATE
            self.world.lost()
            if not self.world.stopping:
                self.go_online()

    def read(self) -> None:
        for message in self.transport.messages()[self._read :]:
            self._read += 1
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        positions = parse_event_id(message.get("id", ""), CHANNELS)
        assert positions is not None
        if not self.begun:
            assert set(positions) == set(CHANNELS)
            self._begin(positions, message.get("reset", {}).get("channels", []))
        else:
            assert "reset" not in message
            self._published(message["channel"], message)
        self.last_id = message.get("id", "") or self.last_id
        if positions:
            told = {name: (one.offset, one.epoch) for name, one in positions.items()}
            assert told == {name: (one.offset, one.epoch) for name, one in self.streams.items()}

    def _begin(self, positions: dict[str, Any], reset: Sequence[str]) -> None:
        """The first message: nothing is left out in silence between the last id and this one."""
        self.begun = True
        for name, stream in self.streams.items():
            at = positions[name]
            if name in reset:
                assert stream.known or self.since or self.world.options is CRAMPED
                if stream.known and self.world.options is OPTIONS:
                    self.world.not_recovered(stream, {"epoch": at.epoch, "offset": at.offset})
            elif stream.known:
                assert (stream.offset, stream.epoch) == (at.offset, at.epoch)
            elif self.since == "start":
                assert at.offset == 0
            stream.offset, stream.epoch = at.offset, at.epoch
            stream.subscribed = stream.known = True

    def _published(self, channel: str, publication: dict[str, Any]) -> None:
        if publication.get("offset"):
            assert publication["epoch"] == self.streams[channel].epoch
        super()._published(channel, publication)


def of_plain(make_world: type[World]) -> type[World]:
    """The same world, with plain clients in it."""

    class PlainWorld(make_world):  # type: ignore[misc, valid-type]
        def __init__(
            self,
            nursery: trio.Nursery,
            fate: Callable[[Event], Sequence[Event]],
            options: NodeOptions,
            make_broker: type[TestBroker],
        ) -> None:
            super().__init__(nursery, fate, options, make_broker)
            self.finishing = False
            self.subscribers = [
                Reader(self, "start", ready=True),
                Reader(self, "last:2", ready=False),
                Reader(self, "", ready=False),
                Reader(self, "start", ready=False),
            ]

        async def finish(self) -> None:
            self.finishing = True
            await super().finish()

        async def settle(self) -> None:
            await super().settle()
            if self.finishing:  # a client may wait for others to share its bytes with
                self.waited += PATIENCE
                await trio.sleep(PATIENCE)
                await super().settle()

    return PlainWorld


_steps = st.lists(STEPS, min_size=15, max_size=60)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(_steps, st.sampled_from([TestBroker, LateTestBroker]))
def test_every_offset_once_and_in_order(steps: list[Any], broker: type[TestBroker]) -> None:
    """Whatever happens: everything, once, in order, or a reset."""
    clock = MockClock(autojump_threshold=0)
    trio.run(run, steps, in_order, OPTIONS, broker, of_plain(World), clock=clock)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=60)
@given(_steps, st.sampled_from([TestBroker, LateTestBroker]))
def test_on_two_workers(steps: list[Any], broker: type[TestBroker]) -> None:
    """Whichever worker a client comes back to: ids are of streams, not of processes."""
    clock = MockClock(autojump_threshold=0)
    trio.run(run, steps, in_order, OPTIONS, broker, of_plain(WorkersWorld), clock=clock)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=60)
@given(st.lists(st.one_of(STEPS, STEPS, STEPS, RUPTURES), min_size=15, max_size=60))
def test_where_the_broker_loses_events(steps: list[Any]) -> None:
    """Whoever has a position is told to come back, and misses nothing."""
    clock = MockClock(autojump_threshold=0)
    trio.run(run, steps, in_order, OPTIONS, TestBroker, of_plain(World), clock=clock)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=60)
@given(_steps)
def test_in_a_small_outbox(steps: list[Any]) -> None:
    """What does not fit is told, and nobody is cut for what was missed."""
    clock = MockClock(autojump_threshold=0)
    trio.run(run, steps, in_order, CRAMPED, TestBroker, of_plain(World), clock=clock)
