"""Subscribers of every way in: they come back as an SDK does, and check all that they are told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from random import Random
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import trio

from tests.drill.ledger import BrokenPromise, Ledger, Track
from tests.drill.links import (
    Emulated,
    Ended,
    Http,
    Http2,
    Lines,
    Link,
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
_REPLY = 5.0  # seconds for the reply to a command, as in the SDKs
_SUBSCRIBE_AGAIN = 2_500


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
        _accepted(await connection.request("GET", f"/events?{query}", **headers))
        # The head comes before the subscription; a new one begins with its first id.
        fresh = not self._last_event_id
        link = Sse(connection, self._last_event_id)
        try:
            while True:
                await self.patiently(link.more)
                self.connected = True
                if fresh and (link.source.last_event_id or link.source.events):
                    fresh = False
                    for track in self.tracks.values():
                        track.begin(told=False)
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


class _Positioned(Subscriber):
    """A subscriber that knows offset and epoch of each channel, as the SDKs do."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._positions: dict[str, tuple[int, str]] = {}

    def request(self, channel: str) -> dict[str, Any]:
        """What a subscription asks for."""
        if channel not in self._positions:
            return {}
        offset, epoch = self._positions[channel]
        return {"recover": True, "offset": offset, "epoch": epoch}

    def subscribed(self, channel: str, result: Mapping[str, Any]) -> None:
        """A subscription's result has come."""
        asked, track = self._positions.pop(channel, None), self.tracks[channel]
        offset = result.get("offset", 0) if result.get("recoverable") else None
        if result.get("recovered"):
            if asked is None or asked[1] not in ("", result["epoch"]):
                raise BrokenPromise(f"{self.name} was at {asked}, and is recovered as {result}")
            track.resume(offset)
        else:
            track.begin(offset, told=asked is not None)
        if offset is not None:
            self._positions[channel] = (offset, result.get("epoch", ""))
        for publication in result.get("publications", ()):
            self.see(channel, publication)

    def see(self, channel: str, publication: Mapping[str, Any]) -> None:
        super().see(channel, publication)
        if channel in self._positions and "offset" in publication:
            epoch = publication.get("epoch", self._positions[channel][1])
            self._positions[channel] = (publication["offset"], epoch)


class Unidirectional(_Positioned):
    """The three ways in that send a request and then only listen."""

    async def open(self, stream: trio.abc.Stream, request: str) -> Link:
        """The link, on which the request is sent."""
        raise NotImplementedError

    async def listen(self, stream: trio.abc.Stream) -> None:
        subs = {channel: self.request(channel) for channel in self.channels}
        link = await self.open(stream, json.dumps({"subs": subs}))
        while True:
            push = json.loads(await self.patiently(link.receive))
            if "connect" in push:
                self.ping = push["connect"]["ping"]
                for channel in self.channels:
                    self.subscribed(channel, push["connect"]["subs"][channel])
                self.connected = True
            elif "pub" in push:
                self.see(push["channel"], push["pub"])
            elif "disconnect" in push:
                raise end(push["disconnect"]["code"], push["disconnect"]["reason"])


class UniWebSocket(Unidirectional):
    way = "uni_websocket"
    upgrades = True

    async def open(self, stream: trio.abc.Stream, request: str) -> Link:
        link = await WebSocket(stream, f"/connection/{self.way}").open()
        await link.send(request)
        return link


class UniSse(Unidirectional):
    way = "uni_sse"

    async def open(self, stream: trio.abc.Stream, request: str) -> Link:
        return Sse(await _get(stream, f"/connection/{self.way}", request))


class UniHttpStream(Unidirectional):
    way = "uni_http_stream"

    async def open(self, stream: trio.abc.Stream, request: str) -> Link:
        return Lines(await _post(stream, f"/connection/{self.way}", request))


class Bidirectional(_Positioned):
    """The three ways in of the SDKs: commands and replies."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._number = 0

    async def open(self, stream: trio.abc.Stream, connect: str) -> Link:
        """The link, on which the command is sent."""
        raise NotImplementedError

    async def listen(self, stream: trio.abc.Stream) -> None:
        self._number += 1
        connect = json.dumps({"id": self._number, "connect": {"name": "drill"}})
        link = await self.open(stream, connect)
        asked: dict[int, str] = {}
        with trio.CancelScope() as patience:
            patience.deadline = trio.current_time() + _REPLY
            while True:
                for line in (await self.patiently(link.receive)).split("\n"):
                    message = json.loads(line)
                    commands = self._take(link, message, asked)
                    if commands:
                        await link.send("\n".join(json.dumps(one) for one in commands))
                self.connected = not asked
                patience.deadline = inf if self.connected else trio.current_time() + _REPLY
        raise Ended("no reply in time")

    def _take(
        self, link: Link, message: Mapping[str, Any], asked: dict[int, str]
    ) -> Sequence[Mapping[str, Any]]:
        """Take in a reply or push; the commands that answer it."""
        match message:
            case {"error": error}:
                if error.get("temporary"):
                    raise Ended(str(error))
                raise SentAway(str(error))
            case {"connect": connected}:
                self.ping = connected["ping"]
                if isinstance(link, Emulated):
                    link.session, link.node = connected["session"], connected["node"]
                return [self._subscribe(channel, asked) for channel in self.channels]
            case {"subscribe": result, "id": number}:
                self.subscribed(asked.pop(number), result)
            case {"push": {"channel": channel, "pub": publication}}:
                self.see(channel, publication)
            case {"push": {"channel": channel, "unsubscribe": told}}:
                if told["code"] < _SUBSCRIBE_AGAIN:
                    raise SentAway(str(told))
                return [self._subscribe(channel, asked)]
            case {"push": {"disconnect": told}}:
                raise end(told["code"], told["reason"])
            case _ if not message:
                return [{}]  # the pong
            case _:
                raise BrokenPromise(f"{self.name} got {message}")
        return ()

    def _subscribe(self, channel: str, asked: dict[int, str]) -> Mapping[str, Any]:
        self._number += 1
        asked[self._number] = channel
        wish = {"channel": channel, "recoverable": True, "positioned": True, "flag": 1}
        return {"id": self._number, "subscribe": {**wish, **self.request(channel)}}


class ClientWebSocket(Bidirectional):
    way = "websocket"
    upgrades = True

    async def open(self, stream: trio.abc.Stream, connect: str) -> Link:
        link = await WebSocket(stream, f"/connection/{self.way}").open()
        await link.send(connect)
        return link


class ClientSse(Bidirectional):
    way = "sse"

    async def open(self, stream: trio.abc.Stream, connect: str) -> Link:
        link = Sse(await _get(stream, f"/connection/{self.way}", connect))
        return Emulated(link, self._open_stream)


class ClientHttpStream(Bidirectional):
    way = "http_stream"

    async def open(self, stream: trio.abc.Stream, connect: str) -> Link:
        link = Lines(await _post(stream, f"/connection/{self.way}", connect))
        return Emulated(link, self._open_stream)


async def _get(stream: trio.abc.Stream, path: str, command: str) -> Http | Http2:
    connection = http(stream)
    _accepted(await connection.request("GET", f"{path}?cf_connect={quote(command)}"))
    return connection


async def _post(stream: trio.abc.Stream, path: str, command: str) -> Http | Http2:
    connection = http(stream)
    _accepted(await connection.request("POST", path, command))
    return connection


def _accepted(status: int) -> None:
    if status != 200:
        raise Ended(f"answered {status}")


WAYS: Sequence[type[Subscriber]] = (
    Plain,
    Events,
    ClientWebSocket,
    ClientSse,
    ClientHttpStream,
    UniWebSocket,
    UniSse,
    UniHttpStream,
)
"""Every way in."""
