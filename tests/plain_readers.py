"""A plain subscriber on a node without sockets: what it hears, by any of its ways."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.clients.client import Client
from repeater.clients.plain import Greet, Wanted, listening
from repeater.clients.since import parse_since, positions_of
from repeater.fanout.rewind import Rewind
from repeater.node import Node
from repeater.protocol.event_codec import EventCodec
from repeater.protocol.event_messages import EVENT_MESSAGES, EVENT_MESSAGES_ASGI
from repeater.protocol.sse.event_stream import ENVELOPE_STREAM, EVENT_STREAM
from repeater.testing import MemoryTransport
from tests.eventsource import EventSource

WAYS: dict[str, EventCodec] = {
    "events": EVENT_STREAM,
    "events-envelope": ENVELOPE_STREAM,
    "ws": EVENT_MESSAGES,
    "ws-asgi": EVENT_MESSAGES_ASGI,
}


class Heard(msgspec.Struct, frozen=True):
    """An event, or with `reset` the channels that a reset names."""

    id: str
    data: object = None
    channel: str = ""
    reset: tuple[str, ...] = ()
    offset: int = 0


class Reader:
    """One client over all of its connections, which keeps the last id as a browser does."""

    def __init__(self, way: str, *channels: str, since: str = "") -> None:
        self.codec = WAYS[way]
        self.channels = channels
        self.since = since
        self.heard: list[Heard] = []
        self.last_id = ""
        self.transport = MemoryTransport(self.codec)
        self._source = EventSource()
        self._read = 0

    def wanted(self, node: Node, *, by_since: bool) -> Wanted:
        """What its request asks for: the last id comes in the header, or as `since`."""
        grants = {name: SubscriptionGrant() for name in self.channels}
        envelope = self.codec is not EVENT_STREAM
        wanted = Wanted(grant=ConnectionGrant(), channels=grants, envelope=envelope)
        replace = msgspec.structs.replace
        if self.last_id and not by_since:
            return replace(wanted, since=positions_of(self.last_id, self.channels))
        begin = parse_since(self.last_id or self.since, self.channels, node.unix_time())
        if isinstance(begin, Rewind):
            return replace(wanted, rewind=begin)
        return replace(wanted, since=begin)

    @asynccontextmanager
    async def connected(
        self, node: Node, *, by_since: bool = False, greet: Greet | None = None
    ) -> AsyncIterator[Client]:
        """Connect for as long as the block lasts, from the last id on if there is one."""
        self.transport = MemoryTransport(self.codec)
        self._source, self._read = EventSource(self.last_id), 0
        with trio.CancelScope() as scope:  # ended with the client, and with it the caller's block
            client = Client(node.registry, self.transport, scope, ready=True)
            try:
                async with listening(node, client, self.wanted(node, by_since=by_since), greet):
                    yield client
            finally:
                await client.leave()
                self.read()

    def read(self) -> list[object]:
        """The data of all events so far; a reset is a tuple of channels."""
        if self.codec.name.startswith("event-messages"):
            messages = self.transport.messages()
            for message in messages[self._read :]:
                self._take(message, message.get("id", ""))
            self._read = len(messages)
        else:
            self._read_stream()
        return [one.reset or one.data for one in self.heard]

    def _read_stream(self) -> None:
        for chunk in self.transport.sent:
            self._source.feed(chunk)
        self.transport.sent.clear()
        for event in self._source.events[self._read :]:
            data = json.loads(event.data)
            if event.kind == "reset":
                data = {"reset": data}
            elif self.codec is EVENT_STREAM:
                data = {"data": data}
            else:
                assert data.get("id", event.last_event_id) == event.last_event_id
            self._take(data, event.last_event_id)
        self._read = len(self._source.events)
        self.last_id = self._source.last_event_id

    def _take(self, message: dict[str, object], event_id: str) -> None:
        self.last_id = event_id or self.last_id
        match message:
            case {"reset": {"channels": channels}}:
                self.heard.append(Heard(event_id, reset=tuple(channels)))
            case {"data": data}:
                channel, offset = message.get("channel", ""), message.get("offset", 0)
                assert isinstance(channel, str)
                assert isinstance(offset, int)
                self.heard.append(Heard(event_id, data, channel, offset=offset))
            case _:
                assert message.keys() == {"id"}, "neither an event nor a reset nor an id"
