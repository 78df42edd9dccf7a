"""A flood's subscribers: every event is checked in every stream, mostly by one comparison.

The bytes that arrive first are parsed, frame by frame, and become the common stream; the bytes of
all other subscribers are compared with it. Different bytes are not a fault in themselves, because a
server may ping, and may put any number of events into a frame. The frames of such a subscriber are
parsed as well, until its position is the end of a frame of the common stream. Rule 1: parsed events
must be the next ones, whole, once and in order.
"""

from __future__ import annotations

import re
import select
import time
from bisect import bisect_left, bisect_right
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import WireError, event, split_frames

MOST_EVENTS: Final = 1_000_000  # an event's number has six digits
_DIGITS: Final = 6
_EVENT: Final = re.compile(re.escape(event(0)).replace(b"0" * _DIGITS, rb"(\d{6})", 1))
_BATCH: Final = 64  # sockets read between two looks at the publisher
_WORTH: Final = 4_096  # bytes a chunk: with less, receiving costs more than checking
_BREATH: Final = 0.001  # seconds
_APART: Final = 1 << 60  # the position of a subscriber whose frames differ


class Streams:
    """What the subscribers of one channel receive. Lives inside one flood."""

    def __init__(self, crowd: Crowd, *, framed: bool = True) -> None:
        """`framed` is false for Server-Sent Events, which are always parsed."""
        self._crowd = crowd
        self._framed = framed
        self._receive_into = {fd: sock.recv_into for fd, sock in crowd.sockets.items()}
        self._buffer = bytearray(262_144)
        self._due = bytearray()  # the numbers of the published events
        self._common = bytearray()  # whole frames only
        self._ends = [0]  # where its frames end
        self._counts = [0]  # the number of events up to each of these ends
        self._at = dict.fromkeys(crowd.sockets, 0 if framed else _APART)
        self._apart = {} if framed else dict.fromkeys(crowd.sockets, 0)
        self._publishers: dict[int, Publisher] = {}
        self.busy = Busy()

    def watch(self, publisher: Publisher) -> None:
        """Serve this publisher's socket too."""
        self._publishers[publisher.fileno()] = publisher
        self._crowd.poller.register(publisher.fileno(), select.EPOLLIN)

    def expect(self, events: int) -> list[bytes]:
        """Return the next events, which the caller must publish now."""
        first = self.expected
        self._due += b"".join(b"%06d" % number for number in range(first, first + events))
        return [event(number) for number in range(first, first + events)]

    @property
    def expected(self) -> int:
        """Events that every subscriber must have received in the end."""
        return len(self._due) // _DIGITS

    @property
    def received(self) -> int:
        """Events that all subscribers have received: the slowest subscriber's number."""
        least = min(self._apart.values(), default=MOST_EVENTS)
        at = min(self._at.values())
        if at == _APART:
            return least
        return min(least, self._counts[bisect_right(self._ends, at) - 1])

    def pump(self, timeout: float) -> None:
        """Read the available bytes, after at most `timeout` seconds for the first.

        If these were few, the pump then lets more gather for a millisecond: a generator that
        receives events one by one would slow down a server that sends them one by one.

        Raises:
            WireError: an event was lost, doubled, altered or out of order; or the server hung up.
        """
        common, at, partial = self._common, self._at, self._crowd.partial
        view = memoryview(self._buffer)
        total, ready = 0, self._crowd.poller.poll(timeout, _BATCH)
        for fd, _ in ready:
            receive_into = self._receive_into.get(fd)
            if receive_into is None:
                self._publishers[fd].ready()
                continue
            size = receive_into(view)
            total += size
            if size and common.startswith(view[:size], at[fd]) and fd not in partial:
                at[fd] += size
            else:
                self._take(fd, bytes(view[:size]))
        if total < len(ready) * _WORTH:
            time.sleep(_BREATH)

    def _take(self, fd: int, data: bytes) -> None:
        """Take bytes that are not, or not wholly, in the common stream."""
        if not data:
            raise WireError("the server hung up on a subscriber")
        if fd in self._apart:
            self._parse(fd, data, self._apart[fd])
            return
        at, data = self._at[fd], self._crowd.partial.pop(fd, b"") + data
        known = len(self._common) - at
        if not self._common.startswith(memoryview(data)[:known], at):
            frame = bisect_right(self._ends, at) - 1
            begun = bytes(self._common[self._ends[frame] : at])
            self._parse(fd, begun + data, self._counts[frame])
        elif len(data) <= known:
            self._at[fd] += len(data)
        else:
            rest = self._extend(data[known:])
            self._at[fd] = len(self._common)
            if rest:
                self._parse(fd, rest, self._counts[-1])

    def _extend(self, data: bytes) -> bytes:
        """Extend the common stream; return the bytes after its last whole frame of events."""
        used, count = 0, self._counts[-1]
        for _, payload in split_frames(data)[0]:
            events = self._check(payload, count)
            if not events:
                break
            count += events
            size = len(payload)
            used += size + (2 if size < 126 else 4 if size < 65_536 else 10)
            self._ends.append(len(self._common) + used)
            self._counts.append(count)
        self._common += data[:used]
        return data[used:]

    def _parse(self, fd: int, data: bytes, count: int) -> None:
        """Check this subscriber's own frames, which follow its first `count` events."""
        for payload in self._crowd.frames(fd, data):
            count += self._check(payload, count)
        frame = bisect_left(self._counts, count)
        if self._framed and frame < len(self._counts) and self._counts[frame] == count:
            self._at[fd] = self._ends[frame]
            self._apart.pop(fd, None)
        else:
            self._at[fd] = _APART
            self._apart[fd] = count

    def _check(self, payload: bytes, count: int) -> int:
        """Return the number of events in the payload; they must follow the first `count`."""
        numbers = b"".join(_EVENT.findall(payload))
        if not self._due.startswith(numbers, count * _DIGITS):
            wanted = self._due[count * _DIGITS :][: len(numbers)] or b"nothing"
            raise WireError(
                f"events {numbers.decode()[:60]} where {wanted.decode()[:60]} was due: "
                "lost, doubled or out of order"
            )
        return len(numbers) // _DIGITS
