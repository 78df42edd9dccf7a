"""Reads streams that are in doubt: once for a node, some at a time, in no herd.

What is found goes behind what is late already, before anything newer of the channel. Whoever reads
waits until nothing is late, before the next stream. So few bytes wait, however many channels were
hurt; and a stream with much to read stands in line again behind the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.valkey.engine import ForeignError
from repeater.brokers.valkey.values import NO_STREAM, Read
from repeater.brokers.valkey.warning_limit import WarningLimit
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import Rupture

if TYPE_CHECKING:
    from repeater.brokers.valkey.engine import Engine
    from repeater.brokers.valkey.follower import Verdict
    from repeater.brokers.valkey.holds import Held
    from repeater.brokers.valkey.outlet import Outlet

_log = get_logger("engine")

AT_ONCE: Final = 64
"""Streams that are read side by side."""


class Repairs:
    """Lives inside a `Bus`, whose nursery runs `run`."""

    def __init__(self, engine: Engine, outlet: Outlet, answered: Callable[[Held], None]) -> None:
        """Have `answered` called with each channel whose stream was read."""
        self._engine = engine
        self._outlet = outlet
        self._answered = answered
        self._wanted: deque[Held] = deque()
        self._under_way: set[Held] = set()
        self._came = trio.lowlevel.ParkingLot()
        self._done = trio.lowlevel.ParkingLot()
        self.reads = 0
        """Reads of streams."""
        self.failures = 0
        """Reads that failed."""
        self._warnings = WarningLimit(_log)
        self.forks = 0
        """Streams that had forked."""
        self.ruptures = 0
        """Streams whose listeners were told that publications are missing."""
        self.foreign = 0
        """Messages, entries and tops that no node has written."""

    def __len__(self) -> int:
        """The number of streams that are to be read, or are being read."""
        return len(self._under_way)

    def want(self, held: Held) -> None:
        """Have a stream read; nothing if it is to be read already."""
        if held not in self._under_way:
            self._under_way.add(held)
            self._wanted.append(held)
            self._came.unpark()

    def note_foreign(self, error: ForeignError) -> None:
        """Count what no node has written, and log it."""
        self.foreign += 1
        self._warnings.warn(
            "the engine has something that is not ours", reason=str(error), count=self.foreign
        )

    def _note_failure(self, error: BrokerError) -> None:
        self.failures += 1
        self._warnings.warn("streams could not be read", reason=str(error), count=self.failures)

    async def run(self) -> None:
        """Read until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work)

    async def wait_done(self) -> None:
        """Wait until no stream is to be read. The caller sets the deadline."""
        while self._under_way:
            await self._done.park()

    async def _work(self) -> None:
        while True:
            await self._outlet.wait_empty()
            while not self._wanted:  # No deadline: nothing is in doubt.
                await self._came.park()
            held = self._wanted.popleft()
            try:
                again = held.reading and not held.given_up and await self._repair(held)
            except BrokerError as error:
                # The stream stays in doubt until the next look at all channels.
                self._note_failure(error)
                again = False
            if again:
                self._wanted.append(held)
                continue
            self._under_way.discard(held)
            if not self._under_way:
                self._done.unpark_all()

    async def _repair(self, held: Held) -> bool:
        """Read a stream once; whether it must be read again."""
        doubts = held.doubts
        try:
            found = await self._engine.look(held.channel, held.place).wait()
        except ForeignError as error:
            self.note_foreign(error)
            found = await self._top(held)
        if held.given_up:
            return False
        self.reads += 1
        verdict = held.read(found, doubts)
        self.hand_on(held, verdict)
        self._answered(held)
        if verdict.forked:
            self.forks += 1
            await self._engine.fork(held.channel, verdict.forked).wait()
        return held.reading

    async def _top(self, held: Held) -> Read:
        """The top of a stream whose entries cannot be read; no stream, if it has no top either."""
        try:
            return await self._engine.look(held.channel, None).wait()
        except ForeignError as error:
            self.note_foreign(error)
            return Read(NO_STREAM)

    def hand_on(self, held: Held, verdict: Verdict) -> None:
        """Hand on what was found, if somebody listens."""
        for event in verdict.events:
            if isinstance(event, Rupture):
                self.ruptures += 1
                _log.info("publications of a channel are missing", channel=held.channel)
            if held.listened:
                self._outlet.put(event)
