"""Subscribers of Centrifugo's ways in, which come back and go on as its SDKs do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any
from urllib.parse import quote

import trio

from tests.drill.ledger import BrokenPromise
from tests.drill.links import (
    Emulated,
    Ended,
    Http,
    Http2,
    Lines,
    Link,
    SentAway,
    Sse,
    WebSocket,
    end,
    http,
)
from tests.drill.subscribers import Events, Plain, Subscriber, accepted

_REPLY = 5.0  # seconds for the reply to a command, as in the SDKs
_SUBSCRIBE_AGAIN = 2_500  # codes of `unsubscribe` from here on


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
    accepted(await connection.request("GET", f"{path}?cf_connect={quote(command)}"))
    return connection


async def _post(stream: trio.abc.Stream, path: str, command: str) -> Http | Http2:
    connection = http(stream)
    accepted(await connection.request("POST", path, command))
    return connection


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
