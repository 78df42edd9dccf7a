"""The thread that uses the file: one call after the other, in the order in which they are asked.

A commit of one publication takes as long as the disk and the way to a thread and back. Trio's own
way takes 0.1 ms more: a checkpoint for its limiter, a thread from its cache, and a task of Trio's
that wakes the one that waits. Here the thread rings a bell, which is a socket, and the task that
waits for it is the next that runs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar, cast

import trio

from repeater.log import get_logger

_log = get_logger("history")

Result = TypeVar("Result")


class Writer:
    """Made and ended by `open_writer`."""

    def __init__(self, bell: socket.socket, ring: Callable[[bytes], object]) -> None:
        """`ring` writes to the other end of the `bell`, which does not block."""
        self._bell = bell
        self._ring = ring
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._line = trio.lowlevel.ParkingLot()
        self._busy = False
        self._value: object = None
        self._error: BaseException | None = None
        self.abandoned = False
        """Whether the thread still uses the file, because the disk does not answer."""

    async def run(
        self, call: Callable[[], Result], patience: trio.CancelScope | None = None
    ) -> Result:
        """Run a call in the thread, and return or raise what it does.

        Cancelled before its turn comes, it does not run. From then on a cancelled caller waits for
        its end, to know what was written.

        Args:
            call: It may block.
            patience: A shielded cancel scope that ends such a wait, for when the disk does not
                answer; by default nothing does. Then the file is left as it is, no other call
                runs, and this one waits for its own cancellation.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._busy:
            await self._line.park()  # Whoever ends its turn hands it on.
        self._busy = True
        self._calls.put(call)
        with patience or trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._bell)
            self._bell.recv(1)
            return cast("Result", self._end_turn())
        self.abandoned = True
        _log.error("the disk does not answer: the file is left as it is")
        await trio.sleep_forever()  # This task was cancelled.
        raise AssertionError

    def _end_turn(self) -> object:
        if self._line:
            self._line.unpark()
        else:
            self._busy = False
        value, error = self._value, self._error
        self._value = self._error = None
        if error is not None:
            raise error
        return value

    def work(self) -> None:
        """The thread: run what comes, until `close`."""
        with suppress(OSError):  # The bell is gone: nobody waits for the end of this call.
            while (call := self._calls.get()) is not None:
                try:
                    self._value = call()
                except BaseException as error:  # raised where the call was asked for
                    self._error = error
                del call
                self._ring(b"\0")

    def close(self) -> None:
        """Have the thread end as soon as it can."""
        self._calls.put(None)


@contextmanager
def open_writer() -> Iterator[Writer]:
    """A thread for the time of a block, whose end waits for it unless it was abandoned."""
    bell, other = socket.socketpair()
    with bell, other:
        bell.setblocking(False)
        writer = Writer(bell, other.send)
        # A daemon, because an abandoned one must not keep the process.
        thread = Thread(target=writer.work, name="history", daemon=True)
        thread.start()
        try:
            yield writer
        finally:
            writer.close()
            if not writer.abandoned:
                thread.join()
