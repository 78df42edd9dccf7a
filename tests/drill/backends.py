"""Back ends that publish as fast as they are answered: by calls, in batches, in streams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec
import trio

from tests.drill.doors import Door
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets
from tests.drill.target import KEY

_ANSWER: Final = 20.0  # seconds; the server may stand still for a while
_AFTER_FAILURE: Final = 0.05
_PAD: Final = "x" * 100  # about 140 bytes an event, as in the benchmarks
BATCH: Final = 100
LINES: Final = 500
_publishers = itertools.count(1)


class _Position(msgspec.Struct):
    offset: int = 0
    epoch: str = ""


class _Reply(msgspec.Struct):
    """A call's answer, or an item's in a batch's."""

    result: _Position | None = None
    publish: _Position | None = None
    error: dict[str, object] | None = None


class _Replies(msgspec.Struct):
    replies: list[_Reply] = []


class _Summary(msgspec.Struct):
    accepted: int
    failed: int
    stopped_at: int = 0


class _Whole(msgspec.Struct):
    result: _Summary


class Refused(Exception):  # noqa: N818  # a full disk may refuse
    """The server has answered that it did not publish."""


class Backend:
    """One back end on one connection; comes back when that ends.

    Args:
        door: Opens the connection.
        pause: Seconds between two requests.
    """

    def __init__(
        self, door: Door, channels: Sequence[str], offsets: Offsets, rng: Random, pause: float = 0
    ) -> None:
        self._door = door
        self._channels = channels
        self._offsets = offsets
        self._rng = rng
        self._pause = pause
        self._publisher = 0

    async def run(self) -> None:
        """Publish until cancelled; the request that is under way then is doubtful."""
        while True:
            # A request that has failed may still be done, behind those that come after it.
            self._publisher = next(_publishers)
            try:
                async with await self._door() as stream:
                    connection = _Connection(stream)
                    while True:
                        await self._publish(connection)
                        await trio.sleep(self._pause)
            except Refused:
                self._offsets.counts["refused"] += 1
            except (OSError, trio.BrokenResourceError, trio.TooSlowError):
                self._offsets.counts["doubtful"] += 1
            await trio.sleep(_AFTER_FAILURE)

    async def _publish(self, connection: _Connection) -> None:
        raise NotImplementedError

    def _event(self, channel: str, number: int) -> bytes:
        return b'{"channel":"%s","data":{"n":%d,"pad":"%s"}}' % (
            *(channel.encode(), number),
            _PAD.encode(),
        )

    def _some(self, count: int) -> list[tuple[str, int]]:
        """Events of several channels, in their order."""
        channels = self._rng.choices(self._channels, k=count)
        return [(channel, self._offsets.attempt(self._publisher)) for channel in channels]

    def _take(self, channel: str, number: int, answer: _Position | None) -> None:
        if answer is None:
            raise Refused
        self._offsets.counts["acknowledged"] += 1
        self._offsets.tell(channel, answer.epoch, answer.offset, number)


class Calls(Backend):
    """One event in each call."""

    _decode = msgspec.json.Decoder(_Reply).decode

    async def _publish(self, connection: _Connection) -> None:
        ((channel, number),) = self._some(1)
        answer = await connection.post("publish", self._event(channel, number))
        self._take(channel, number, self._decode(answer).result)


class Batches(Backend):
    """A hundred events in each call."""

    _decode = msgspec.json.Decoder(_Replies).decode

    async def _publish(self, connection: _Connection) -> None:
        some = self._some(BATCH)
        items = b",".join(b'{"publish":%s}' % self._event(*one) for one in some)
        answer = self._decode(await connection.post("batch", b'{"commands":[%s]}' % items))
        if len(answer.replies) != len(some):
            raise BrokenPromise(f"{len(answer.replies)} replies to {len(some)} items")
        for (channel, number), reply in zip(some, answer.replies, strict=True):
            if reply.error is None:
                self._take(channel, number, reply.publish)
        if any(reply.error is not None for reply in answer.replies):
            raise Refused


class Streams(Backend):
    """Bodies of many lines; the answer says only how many of them were published."""

    _decode = msgspec.json.Decoder(_Whole).decode

    async def _publish(self, connection: _Connection) -> None:
        some = self._some(LINES)
        lines = b"\n".join(self._event(*one) for one in some)
        summary = self._decode(await connection.post("stream", lines)).result
        if summary.failed or summary.stopped_at:
            raise Refused
        if summary.accepted != len(some):
            raise BrokenPromise(f"{summary.accepted} of {len(some)} lines are accepted")
        self._offsets.counts["acknowledged"] += len(some)
        for channel, number in some:
            self._offsets.accept(channel, number)


class _Connection:
    """Requests on one connection, one after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""

    async def post(self, method: str, body: bytes) -> bytes:
        """A call of the server API; its answer, whatever the status.

        Raises:
            trio.TooSlowError: no answer.
            trio.BrokenResourceError: the connection has ended.
            Refused: nothing was done.
        """
        head = f"POST /api/{method} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        length = f"Content-Length: {len(body)}\r\n\r\n"
        with trio.fail_after(_ANSWER):
            await self._stream.send_all((head + length).encode() + body)
            while b"\r\n\r\n" not in self._received:
                await self._receive()
            answer, _, self._received = self._received.partition(b"\r\n\r\n")
            size = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            while len(self._received) < size:
                await self._receive()
        found, self._received = self._received[:size], self._received[size:]
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")):
            raise BrokenPromise(f"{method} is answered by {answer!r} {found!r}")
        if not found.startswith(b"{"):  # words: the server is shutting down
            raise Refused
        return found

    async def _receive(self) -> None:
        received = await self._stream.receive_some(65_536)
        if not received:
            raise trio.BrokenResourceError("the server hung up")
        self._received += bytes(received)
