"""The clients of a server that is changed under load, and what they saw of the change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import trio

from tests.drill.centrifugo import ClientWebSocket
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.links import Ended

KEY = "the-key-of-the-back-end"

_EVERY = 0.02  # seconds between two new connections, or two calls of one back end
_AFTER_FAILURE = 0.05
_COMES_BACK = (0.1, 0.5)  # seconds before a subscriber connects again: sooner than SDKs do
_ANSWERS = 20.0  # seconds for an answer


@dataclass
class Report:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    """When publishes of kept connections were acknowledged."""
    newcomers: list[float] = field(default_factory=list)
    """Seconds from a new connection to the answer to its publish."""
    failures: list[float] = field(default_factory=list)
    """When a publish was not acknowledged, whatever the reason."""
    away: dict[str, float] = field(default_factory=dict)
    """Longest time of each subscriber without a subscription."""

    @property
    def pause(self) -> float:
        """The longest time in which nobody's publish was acknowledged, in seconds."""
        moments = sorted(self.accepted)
        return max(b - a for a, b in pairwise(moments))

    @property
    def lost_connections(self) -> Mapping[str, int]:
        """Connections that were refused, reset, or ended without an answer."""
        names = ("refused", "reset", "no answer")
        return {name: count for name, count in self.counts.items() if name.startswith(names)}

    def lines(self) -> Sequence[str]:
        """The report for a person."""
        failed = max(self.failures) - min(self.failures) if self.failures else 0.0
        return [
            f"publishing paused for {self.pause * 1e3:.0f} ms; publishes failed in a time of "
            f"{failed * 1e3:.0f} ms",
            f"longest answer to a new connection {max(self.newcomers) * 1e3:.0f} ms",
            f"longest time of a subscriber without a subscription {max(self.away.values()):.2f} s",
            ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items())),
        ]


class NoAnswerError(Exception):
    """A connection ended before its answer."""


class Calls:
    """Publishes on one connection, as a back end does; a new one where the old one has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None

    async def publish(self, channel: str, data: object, *, kept: bool = True) -> dict[str, Any]:
        """Publish once; the answer.

        Raises:
            OSError: nobody accepts the connection.
            NoAnswerError: the connection ended instead.
        """
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        body = json.dumps({"channel": channel, "data": data}).encode()
        head = f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        head += f"Content-Length: {len(body)}\r\n" + ("" if kept else "Connection: close\r\n")
        try:
            await self._stream.send_all(head.encode() + b"\r\n" + body)
            with trio.fail_after(_ANSWERS):
                head_, answer = await self._answer(self._stream)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            await self.aclose()
            raise NoAnswerError(repr(error.__cause__ or error)) from None
        if not kept or b"connection: close" in head_.lower():
            await self.aclose()
        found: dict[str, Any] = (
            json.loads(answer)
            if answer.startswith(b"{")
            else {"status": head_.partition(b"\r\n")[0].decode()}
        )
        return found

    async def _answer(self, stream: trio.SocketStream) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await _some(stream)
        head, _, body = received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < size:
            body += await _some(stream)
        return head, body

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
        self._stream = None


async def _some(stream: trio.SocketStream) -> bytes:
    chunk = await stream.receive_some(65_536)
    if not chunk:
        raise trio.BrokenResourceError("end of file")
    return bytes(chunk)


class Load:
    """Back ends, newcomers and subscribers of one server. Lives inside `measure`."""

    def __init__(self, port: int, ledger: Ledger, report: Report) -> None:
        self._port = port
        self._ledger = ledger
        self._report = report

    async def publish(self, channel: str) -> None:
        """Publish into one channel, one event after the other, until cancelled."""
        calls = Calls(self._port)
        try:
            while True:
                accepted = await self.publish_once(channel, calls)
                await trio.sleep(_EVERY if accepted else _AFTER_FAILURE)
        finally:
            with trio.CancelScope(shield=True):
                await calls.aclose()

    async def publish_once(self, channel: str, calls: Calls) -> bool:
        """Publish the next event; whether it was acknowledged. Not cancelled half-way."""
        with trio.CancelScope(shield=True):
            number = self._ledger.attempt(channel)
            if await self._try(calls, channel, {"channel": channel, "n": number}):
                self._ledger.accept(channel, number)
                self._report.accepted.append(trio.current_time())
                return True
        return False

    async def _try(self, calls: Calls, channel: str, data: object, *, kept: bool = True) -> bool:
        try:
            answer = await calls.publish(channel, data, kept=kept)
        except OSError as error:
            kind = "refused" if isinstance(error, ConnectionRefusedError) else f"refused: {error}"
        except NoAnswerError as error:
            kind = f"no answer: {error}"
        else:
            if "result" in answer:
                return True
            kind = f"error {answer['error']['code']}" if "error" in answer else answer["status"]
        self._report.counts[kind] += 1
        self._report.failures.append(trio.current_time())
        return False

    async def connect(self, nursery: trio.Nursery) -> None:
        """Open a connection for each event, again and again, until cancelled."""
        while True:
            nursery.start_soon(self._newcomer)
            await trio.sleep(_EVERY)

    async def _newcomer(self) -> None:
        with trio.CancelScope(shield=True):
            calls, began = Calls(self._port), trio.current_time()
            if await self._try(calls, "visitors", {}, kept=False):
                self._report.newcomers.append(trio.current_time() - began)


class Follower(ClientWebSocket):
    """A subscriber that notes how its connections end, and how long it is away."""

    report: Report
    _left = 0.0

    async def run(self) -> None:
        while True:
            try:
                async with await self._open_stream("http/1.1") as stream:
                    await self.listen(stream)
            except Ended as ended:
                self.report.counts[_kind(str(ended))] += 1
            except OSError as error:
                self.report.counts[f"refused: a subscriber, {error.strerror}"] += 1
            self._left = self._left or trio.current_time()
            self.connected = False
            await trio.sleep(self._rng.uniform(*_COMES_BACK))

    def subscribed(self, channel: str, result: Mapping[str, Any]) -> None:
        super().subscribed(channel, result)
        away = trio.current_time() - (self._left or trio.current_time())
        self.report.away[self.name] = max(self.report.away.get(self.name, 0.0), away)
        self._left = 0.0


def _kind(end: str) -> str:
    if end.startswith("3001"):
        return "asked to come back"
    if "'code': 100" in end:
        return "subscribe answered 100"
    return f"no answer: a subscriber, {end}"


async def store(port: int, count: int) -> None:
    """Publish so many events, ten thousand into each channel."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = f"POST /api/stream HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
        await stream.send_all(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for start in range(0, count, 1_000):
            channel = f"stored{start // 10_000}"
            event = json.dumps({"channel": channel, "data": "x" * 100}).encode() + b"\n"
            part = event * min(1_000, count - start)
            await stream.send_all(b"%x\r\n%b\r\n" % (len(part), part))
        await stream.send_all(b"0\r\n\r\n")
        answer = await _some(stream)
    if b" 200 " not in answer:
        raise BrokenPromise(f"nothing was stored: {answer!r}")
