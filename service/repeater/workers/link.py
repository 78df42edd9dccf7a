"""One end of the socket pair between a supervisor and a worker: a reader, a writer and a beat.

What is sent in one pass of the loop gathers, and the writer sends it as one frame. Both ends say
once in a second that their loop runs, and count the seconds in which they hear nothing of the
other. The seconds are counted by ticks of this loop: whoever was stopped itself does not take its
own pause for the other's silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from repeater.workers.frames import FrameReader, frame
from repeater.workers.messages import encode

if TYPE_CHECKING:
    from repeater.workers.messages import Message

BEAT: Final = 1.0
"""Seconds between two beats."""
_MESSAGES: Final = 131_072  # bytes of a frame's messages: 700 publishes, 3 ms of the supervisor
_EVENTS: Final = 262_144  # weight of a frame's events: with a batch's limit, a frame is a batch
_READ: Final = 65_536
_ROOM: Final = 8 * 1024 * 1024  # bytes of messages that wait; past them nothing more is read


def _no_events(_most: int) -> Sequence[bytes]:
    return ()


class Link:
    """Made by the code that owns the stream; ended by the end of `run`."""

    def __init__(
        self,
        stream: trio.SocketStream,
        receive: Callable[[bytes], None],
        beat: Callable[[], None],
        events: Callable[[int], Sequence[bytes]] = _no_events,
    ) -> None:
        """Send and receive over `stream`.

        Args:
            stream: One end of a socket pair.
            receive: Takes the body of each frame that comes; never waits.
            beat: Called once in a second; it sends a beat, and may look at `silence`.
            events: Gives encoded events to send, of at most so much weight.
        """
        self._stream = stream
        # Trio's stream has two more passes of the loop and a system call for each frame.
        self._descriptor = stream.socket.fileno()
        self._receive = receive
        self._on_beat = beat
        self._events = events
        self._messages: list[bytes] = []
        self._bytes = 0
        self._writer = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._heard = self._was_heard = False
        self._reading = False  # then the reader sends, and need not wake the writer
        self._full = False  # the writer waits until the socket takes more
        self._rest = memoryview(b"")  # of a frame that was sent in part
        self.silence = 0.0
        """Seconds since something was heard of the other end, in whole beats. They begin with the
        first thing heard: a process takes its time to start."""
        self.end = ""
        """Why the link has ended; empty while it has not."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait to be sent."""
        return self._bytes

    def send(self, message: Message) -> None:
        """Send one message, together with all that gathers; after the end it is dropped."""
        if self.end:
            return
        row = encode(message)
        self._messages.append(row)
        alone = not self._bytes
        self._bytes += len(row)
        if alone:
            self.wake()

    def wake(self) -> None:
        """Have the writer send what there is."""
        if self._writer and not self._reading:
            self._writer.unpark()

    def close(self, reason: str) -> None:
        """End the link, without sending what waits. The first reason counts."""
        self.end = self.end or reason
        self._scope.cancel("the link is closed")

    async def run(self) -> None:
        """Read and write until the other end or `close` ends the link; then it is closed.

        No deadline: a link is there as long as its two processes. The owner of the link sets the
        bound on silence. Cancelled, the link is closed as well.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._beat)
                    await self._read()
                    nursery.cancel_scope.cancel("the other end is gone")
        finally:
            self.end = self.end or "closed"
            self._messages.clear()
            self._bytes = 0
            self._room.unpark_all()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def wait_room(self) -> None:
        """Wait while too much waits to be sent; no checkpoint without a wait.

        No deadline: a peer that does not read ends the link by its silence.
        """
        while self._bytes > _ROOM:
            await self._room.park()

    async def flush(self) -> None:
        """Wait until what gathered is sent. The caller sets the deadline."""
        while (self._bytes or self._rest) and not self.end:
            await self._room.park()

    async def _read(self) -> None:
        """Take frames until the other end is gone; what they make us say is sent with them."""
        reader = FrameReader()
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                data = os.read(self._descriptor, _READ)
            except BlockingIOError:
                continue
            except OSError:
                break  # Reset: as good as its end.
            if not data:
                break
            self._heard = True
            self._reading = True
            for body in reader.feed(data):
                self._receive(body)
            self._reading = False
            if not self._full and not self._send_some():
                self.wake()
            # The other end may ask for more than it reads. Then its calls wait, and its beats: if
            # this lasts, it is silent.
            await self.wait_room()
        self.end = self.end or "the other end is gone"

    async def _write(self) -> None:
        """Send what gathers. A peer that does not read is ended by the bound on its silence."""
        while True:
            if self._send_some():
                self._room.unpark_all()
                await self._writer.park()
            else:
                self._full = True
                await trio.lowlevel.wait_writable(self._descriptor)
                self._full = False

    def _send_some(self) -> bool:
        """Send frames until nothing waits; False if the socket takes no more."""
        while True:
            if not self._rest:
                messages, events = self._next_messages(), self._events(_EVENTS)
                if not messages and not events:
                    return True
                self._rest = memoryview(frame(messages, events))
            try:
                sent = os.write(self._descriptor, self._rest)
            except BlockingIOError:
                return False
            except OSError:
                sent = len(self._rest)  # The other end is gone, which the reader notices.
            self._rest = self._rest[sent:]

    def _next_messages(self) -> list[bytes]:
        messages = self._messages
        if self._bytes <= _MESSAGES:
            self._messages, self._bytes = [], 0
        else:
            size = count = 0
            for row in messages:
                size += len(row)
                count += 1
                if size >= _MESSAGES:
                    break
            self._messages, self._bytes = messages[count:], self._bytes - size
            messages = messages[:count]
            if self._bytes <= _ROOM:
                self._room.unpark_all()
        return messages

    async def _beat(self) -> None:
        while True:
            await trio.sleep(BEAT)
            self._was_heard = self._was_heard or self._heard
            quiet = self._was_heard and not self._heard
            self.silence = self.silence + BEAT if quiet else 0.0
            self._heard = False
            self._on_beat()
