"""A worker's end of the link, and the parts of its node that come over it."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from repeater.brokers.control import Member
from repeater.errors import BrokerError, open_service_nursery
from repeater.random_id import random_id
from repeater.workers import down
from repeater.workers.broker import WorkerBroker
from repeater.workers.calls import Calls
from repeater.workers.control import WorkerControl
from repeater.workers.denials import WorkerDenials
from repeater.workers.down import ApplyDenial, CarryOut, Hello, MembersNow, Position, SupervisorBeat
from repeater.workers.events import WorkerEvents
from repeater.workers.link import Link
from repeater.workers.messages import VERSION
from repeater.workers.presence import WorkerPresence
from repeater.workers.up import WorkerBeat

_GREETING: Final = 10.0  # seconds that the supervisor may take for its first message
_FLUSH: Final = 1.0  # seconds for what is left to send at the end


class WorkerLink:
    """Made and ended by `open_worker_link`. Its parts are for one node."""

    def __init__(self, stream: trio.SocketStream, silence: float) -> None:
        self._link = Link(stream, self._receive, self._beat)
        self._calls = calls = Calls(self._link, silence)
        self._greeted = trio.Event()
        self._ended = trio.Event()
        self._hello: Hello | None = None
        self._control: WorkerControl | None = None
        self.broker = WorkerBroker(calls)
        self.presence = WorkerPresence(calls)
        self.denials = WorkerDenials(calls)
        self.events = WorkerEvents(calls)

    @property
    def number(self) -> int:
        """The worker's number, as the supervisor counts."""
        assert self._hello is not None
        return self._hello.number

    @property
    def control(self) -> WorkerControl:
        """The node's end of the control plane."""
        assert self._control is not None
        return self._control

    def outage(self) -> str:
        """Why the supervisor, or its broker, is not available now; empty if it is."""
        return self._calls.outage()

    async def wait_ended(self) -> str:
        """Wait until the link has ended, and return why. No deadline: it is the worker's life."""
        await self._ended.wait()
        return self._link.end

    async def _run(self) -> None:
        """Run the link until it ends; then fail what is open."""
        try:
            await self._link.run()
        finally:
            self._calls.fail_all()
            self._ended.set()
            self._greeted.set()

    async def _greet(self) -> None:
        """Wait for the supervisor's first message; raises as `open_worker_link`."""
        with trio.move_on_after(_GREETING):
            await self._greeted.wait()
        if self._hello is None:
            raise BrokerError("the supervisor does not answer")
        if self._hello.version != VERSION:
            release = self._hello.release
            raise BrokerError(f"the supervisor runs Repeater {release}: restart the server")

    def _take(self, hello: Hello) -> None:
        self._hello = hello
        me = Member(random_id(), platform.node(), hello.server, hello.number)
        self._control = WorkerControl(self._calls, me)
        self._greeted.set()

    async def _close(self) -> None:
        """Send what is left, for a second at most, and end the link."""
        with trio.move_on_after(_FLUSH, shield=True):
            await self._link.flush()
        self._link.close("closed")

    def _beat(self) -> None:
        self.broker.tell_taken()
        self.broker.hold_again()
        self._link.send(WorkerBeat())

    def _receive(self, body: bytes) -> None:
        frame = down.read(body)
        answer = self._calls.open.answer
        for message in frame.messages:
            if type(message) is Position:  # by far the most
                answer(message)
            elif isinstance(message, SupervisorBeat):
                self._calls.told = message
            elif isinstance(message, ApplyDenial):
                self.denials.receive(message)
            elif isinstance(message, (CarryOut, MembersNow)):
                self.control.receive(message)
            elif isinstance(message, Hello):
                self._take(message)
            else:
                answer(message)
        if frame.events:
            self.broker.receive(frame.events)


@asynccontextmanager
async def open_worker_link(
    stream: trio.SocketStream, *, silence: float = 3.0
) -> AsyncIterator[WorkerLink]:
    """Open a worker's end of the link for as long as the block lasts, and close the stream.

    A node that uses the parts ends inside the block. What is left to send is sent at the end. When
    the supervisor ends, the block goes on; see `WorkerLink.wait_ended`.

    Args:
        stream: The worker's end of the socket pair.
        silence: Seconds without a beat of the supervisor after which calls are refused.

    Raises:
        BrokerError: the supervisor does not answer, or speaks another version of the link.
    """
    link = WorkerLink(stream, silence)
    async with open_service_nursery() as nursery:
        nursery.start_soon(link._run)
        try:
            await link._greet()
            yield link
        finally:
            await link._close()
