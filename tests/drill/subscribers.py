"""A subscriber, who comes back when its connection ends; and those of `/ws` and `/events`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import trio

from tests.drill.ledger import BrokenPromise, Ledger, Track
from tests.drill.links import (
    Ended,
    Open,
    SentAway,
    Sse,
    WebSocket,
    end,
    http,
    reuse,
)

T = TypeVar("T")

_PAUSE = (0.02, 0.5)  # seconds before a reconnect: far less than an SDK's, which is harder to serve
_GRACE = 3.0  # seconds that a ping may be late; SDKs allow 10


class Subscriber:
    """One subscriber of some channels by one way in, until cancelled.

    Args:
        end: `native`; `reused`, if each connection is used for another request first, since
            Hypercorn serves all but the first request of a connection; or `http2`, over TLS.
    """

    way: ClassVar[str]
    upgrades: ClassVar[bool] = False
    """Whether it is a WebSocket, which is not served over HTTP/2."""

    def __init__(
        self,
        number: int,
        channels: Sequence[str],
        ledger: Ledger,
        open_stream: Open,
        *,
        end: str,
    ) -> None:
        self.name = f"{self.way} {end} {number}"
        self.channels = channels
        self.tracks: Mapping[str, Track] = {
            channel: ledger.track(self.name, channel) for channel in channels
        }
        self.connected = False
        self.ledger = ledger
        self.ping = 2.0
        self._open_stream = open_stream
        self._end = end
        self._rng = Random(number)

    async def run(self) -> None:
        """Connect and listen, again and again.

        Raises:
            BrokenPromise: something came that must not come, or did not.
        """
        while True:
            try:
                protocol = "h2" if self._end == "http2" else "http/1.1"
                async with await self._open_stream(protocol) as stream:
                    if self._end == "reused":
                        await reuse(stream)
                    await self.listen(stream)
            except (Ended, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except SentAway as away:
                raise BrokenPromise(f"{self.name} was sent away for good: {away}") from None
            self.connected = False
            self.ledger.counts["reconnects"] += 1
            await trio.sleep(self._rng.uniform(*_PAUSE))

    async def listen(self, stream: trio.abc.Stream) -> None:
        """Subscribe by this connection, and read until its end."""
        raise NotImplementedError

    def see(self, channel: str, publication: Mapping[str, Any]) -> None:
        """A publication has come."""
        data = publication["data"]
        if data["channel"] != channel:
            raise BrokenPromise(f"{self.name} got an event of {data['channel']} in {channel}")
        self.tracks[channel].see(data["n"], publication.get("offset"))

    async def patiently(self, receive: Callable[[], Awaitable[T]]) -> T:
        """What comes next; the connection is given up when not even pings come."""
        with trio.move_on_after(self.ping + _GRACE):
            return await receive()
        raise Ended("no ping")


class Plain(Subscriber):
    """`/ws`: what is published while it is connected, and nothing else."""

    way = "ws"
    upgrades = True

    async def listen(self, stream: trio.abc.Stream) -> None:
        query = "&".join(f"channel={quote(channel)}" for channel in self.channels)
        socket = await WebSocket(stream, f"/ws?{query}").open()
        for track in self.tracks.values():
            track.begin(told=False)
        self.connected = True
        while True:
            await self.patiently(socket.more)  # pings are frames, and no messages
            while socket.texts:
                data = json.loads(socket.texts.pop(0))
                self.see(data["channel"], {"data": data})


class Events(Subscriber):
    """`/events`, as a browser's EventSource: it comes back with the last id, and hears `reset`."""

    way = "events"
    _last_event_id = ""

    async def listen(self, stream: trio.abc.Stream) -> None:
        query = "&".join(f"channel={quote(channel)}" for channel in self.channels)
        headers = {"Accept": "text/event-stream"}
        if self._last_event_id:
            headers["Last_Event_ID"] = self._last_event_id
        connection = http(stream)
        accepted(await connection.request("GET", f"/events?{query}", **headers))
        if not self._last_event_id:
            for track in self.tracks.values():
                track.begin(told=False)
        link = Sse(connection, self._last_event_id)
        try:
            while True:
                await self.patiently(link.more)
                self.connected = True
                self._take(link)
        finally:
            self._last_event_id = link.source.last_event_id

    def _take(self, link: Sse) -> None:
        for event in link.source.events:
            match event.kind:
                case "reset":
                    for channel in json.loads(event.data)["channels"]:
                        self.tracks[channel].begin()
                case "disconnect":
                    told = json.loads(event.data)
                    raise end(told["code"], told["reason"])
                case _:
                    data = json.loads(event.data)
                    self.see(data["channel"], {"data": data})
        link.source.events.clear()


def accepted(status: int) -> None:
    """Look at the status of a stream's answer.

    Raises:
        Ended: it is a refusal.
    """
    if status != 200:
        raise Ended(f"answered {status}")
