"""Subscribers for full load: each follows one channel, comes back, and checks every offset."""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec
import trio

from benchmarks.generator.wire import (
    PING_OPCODE,
    TEXT_OPCODE,
    client_frame,
    handshake,
    pong,
    split_frames,
)
from tests.drill.doors import Door
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets

_PAUSE: Final = (0.02, 0.3)  # seconds before a reconnect
_SILENCE: Final = 15.0  # seconds without a byte: pings come every 4 s
_ANSWER: Final = 10.0  # seconds for the reply to a subscription
_PONG: Final = client_frame(b"{}")
_FOR_GOOD: Final = 3_500
_SUBSCRIBE_AGAIN: Final = 2_500


class _Data(msgspec.Struct):
    n: int


class _Connected(msgspec.Struct):
    client: str = ""


class _Published(msgspec.Struct):
    data: _Data
    offset: int = 0


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Published] = []


class _End(msgspec.Struct):
    code: int
    reason: str = ""


class _Pushed(msgspec.Struct):
    pub: _Published | None = None
    unsubscribe: _End | None = None
    disconnect: _End | None = None


class _Refusal(msgspec.Struct):
    code: int
    message: str = ""
    temporary: bool = False


class _Message(msgspec.Struct):
    id: int = 0
    error: _Refusal | None = None
    connect: _Connected | None = None
    subscribe: _Subscribed | None = None
    push: _Pushed | None = None


_decode = msgspec.json.Decoder(_Message).decode


class _Over(Exception):  # noqa: N818  # connections end
    """The connection is over; the follower comes back."""


class Follower:
    """One subscriber of one channel by `/connection/websocket`, until cancelled."""

    def __init__(self, door: Door, channel: str, offsets: Offsets, rng: Random) -> None:
        self.live = False
        self.progress = offsets.progress(channel)
        self._door = door
        self._offsets = offsets
        self._rng = rng

    async def run(self) -> None:
        """Connect and listen, again and again.

        Raises:
            BrokenPromise: something came that must not come, or did not.
        """
        while True:
            try:
                async with await self._door() as stream:
                    await self._listen(stream)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, _Over):
                pass
            self.live = False
            self._offsets.counts["reconnects"] += 1
            await trio.sleep(self._rng.uniform(*_PAUSE))

    async def _listen(self, stream: trio.SocketStream) -> None:
        await stream.send_all(handshake("/connection/websocket"))
        received = b""
        with trio.fail_after(_ANSWER):
            while b"\r\n\r\n" not in received:
                received += await _receive(stream)
        head, _, received = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise _Over(head)
        await stream.send_all(client_frame(b'{"id":1,"connect":{}}') + self._subscription())
        while True:
            frames, received = split_frames(received)
            for opcode, payload in frames:
                if opcode == TEXT_OPCODE:
                    for line in payload.split(b"\n"):
                        if answer := self._take(_decode(line)):
                            await stream.send_all(answer)
                elif opcode == PING_OPCODE:
                    await stream.send_all(pong(payload))
                else:
                    self._closed(int.from_bytes(payload[:2]), payload[2:])
            with trio.fail_after(_SILENCE if self.live else _ANSWER):
                received += await _receive(stream)

    def _subscription(self) -> bytes:
        at = self.progress
        wish = {"channel": at.channel, "recoverable": True, "positioned": True}
        if at.epoch:
            wish |= {"recover": True, "offset": at.offset, "epoch": at.epoch}
        return client_frame(msgspec.json.encode({"id": 2, "subscribe": wish}))

    def _take(self, message: _Message) -> bytes:
        """Take in one message; the bytes that answer it."""
        if message.push is not None:
            return self._pushed(message.push)
        if message.error is not None:
            if not message.error.temporary:
                raise BrokenPromise(f"{self.progress.name} got {message.error}")
            raise _Over(message.error)
        if message.subscribe is not None:
            self._subscribed(message.subscribe)
        elif message.connect is None:
            return _PONG
        return b""

    def _pushed(self, push: _Pushed) -> bytes:
        if push.pub is not None:
            self.progress.see(push.pub.offset, push.pub.data.n)
        elif push.unsubscribe is not None:
            if push.unsubscribe.code < _SUBSCRIBE_AGAIN:
                raise BrokenPromise(f"{self.progress.name} got {push.unsubscribe}")
            return self._subscription()
        elif push.disconnect is not None:
            self._closed(push.disconnect.code, push.disconnect.reason.encode())
        return b""

    def _subscribed(self, answer: _Subscribed) -> None:
        if answer.recovered:
            self.progress.resume(answer.epoch, answer.offset)
        else:
            self.progress.begin(answer.epoch, answer.offset)
        for one in answer.publications:
            self.progress.see(one.offset, one.data.n)
        self.live = True

    def _closed(self, code: int, reason: bytes) -> None:
        if _FOR_GOOD <= code < 4_000 or 4_500 <= code < 5_000:
            raise BrokenPromise(f"{self.progress.name} was sent away: {code} {reason!r}")
        raise _Over(code)


async def _receive(stream: trio.SocketStream) -> bytes:
    received = await stream.receive_some(262_144)
    if not received:
        raise _Over("cut")
    return bytes(received)
