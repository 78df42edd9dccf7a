"""Callers: some connections that each publish in a closed loop, on one epoll.

Each call names the next of the channels, so that all channels fill evenly.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from benchmarks.generator.protocol import Entry
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import WireError, event

_PATIENCE: Final = 10.0  # seconds in which the last calls must be answered
_NUMBERS: Final = 1_000_000  # an event's number has six digits


class Callers:
    """Back ends of one server. Owned by a turn's `with` block, which closes them."""

    def __init__(self, port: int, entries: Sequence[Entry], connections: int) -> None:
        """Connect; `entries` are those of the channels, all with the same greeting."""
        self._entries = entries
        self._publishers = [Publisher(port, entries[0]) for _ in range(connections)]
        self._poller = select.epoll()
        self._by_descriptor = {one.fileno(): one for one in self._publishers}
        for descriptor in self._by_descriptor:
            self._poller.register(descriptor, select.EPOLLIN)
        self._called = 0
        self.busy = Busy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for publisher in self._publishers:
            publisher.close()
        self._poller.close()

    @property
    def latencies_ns(self) -> list[int]:
        """How long each call took since `forget`."""
        return [took for one in self._publishers for took in one.latencies_ns]

    def forget(self) -> None:
        """Forget the measurements so far, which were the warm-up."""
        self.busy = Busy()
        for publisher in self._publishers:
            publisher.latencies_ns.clear()

    def run(self, seconds: float) -> None:
        """Call for so many seconds, and wait for the last answers.

        Raises:
            WireError: a call was refused, or not answered in time.
        """
        self.busy.begin()
        end = time.monotonic() + seconds
        for publisher in self._publishers:
            self._call(publisher)
        open_calls = len(self._publishers)
        while open_calls:
            now = time.monotonic()
            if now > end + _PATIENCE:
                raise WireError(f"{open_calls} calls were not answered in time")
            for descriptor, _ in self._poller.poll(1.0):
                publisher = self._by_descriptor[descriptor]
                publisher.ready()
                if publisher.waiting:
                    continue
                if now < end:
                    self._call(publisher)
                else:
                    open_calls -= 1
        self.busy.end()

    def _call(self, publisher: Publisher) -> None:
        number = self._called
        self._called += 1
        entry = self._entries[number % len(self._entries)]
        publisher.publish(event(number % _NUMBERS), entry)
