"""What the tests of the Centrifugo protocol share: a client's talk, and tokens by heart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionClaims
from repeater.brokers.receipts import settled
from repeater.clients.client import Client
from repeater.clients.session import Session
from repeater.errors import CONNECTION_CLOSED
from repeater.node import Node
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, Codec
from repeater.publication import (
    ClientInfo,
)
from repeater.testing import MemoryTransport, connect

Message = Mapping[str, Any]


class Talk:
    """One client's session and what it was sent."""

    def __init__(self, node: Node, client: Client, transport: MemoryTransport) -> None:
        self.client = client
        self.transport = transport
        self.session = Session(node, client)
        self.ids = 0
        self.read = 0

    def command(self, **method: Any) -> str:
        """One command with the next id."""
        self.ids += 1
        return json.dumps({"id": self.ids, **method})

    async def ask(self, **method: Any) -> Any:
        """Send one command and return its reply alone; what else comes stays in `news`."""
        before = len(self.transport.sent)
        await self.session.receive(self.command(**method))
        for chunk in self.transport.sent[before:]:
            message = json.loads(chunk)
            if message.get("id") == self.ids:
                return message
        return None

    async def say(self, *commands: dict[str, Any]) -> list[Any]:
        """Send these in one message; what has come since, once the node has no more to do."""
        before = len(self.transport.sent)
        await self.session.receive("\n".join(json.dumps(one) for one in commands))
        await wait_all_tasks_blocked()
        return [json.loads(chunk) for chunk in self.transport.sent[before:]]

    async def call(self, command: str, /, **fields: Any) -> Any:
        """Send one command, whose reply is all that comes; without its id."""
        self.ids += 1
        (reply,) = await self.say({"id": self.ids, command: fields})
        assert reply.pop("id") == self.ids
        return reply

    async def connect(self, token: str = "", **more: Any) -> Any:
        """Send `connect`; returns the result, or the error."""
        if token:
            more["token"] = token
        return outcome(await self.ask(connect=more), "connect")

    async def subscribe(self, channel: str = "c", **more: Any) -> Any:
        """Send `subscribe`; returns the result, or the error."""
        return outcome(await self.ask(subscribe={"channel": channel, **more}), "subscribe")

    async def news(self) -> list[Any]:
        """Every message since the last call, once the node has nothing more to do."""
        await wait_all_tasks_blocked()
        read, self.read = self.read, len(self.transport.sent)
        return [json.loads(chunk) for chunk in self.transport.sent[read:]]

    async def pushes(self, kind: str | None = None) -> list[Any]:
        """The pushes among the news, or the bodies of those of one kind."""
        pushes = [message["push"] for message in await self.news() if "push" in message]
        return pushes if kind is None else [push[kind] for push in pushes if kind in push]

    async def data(self) -> list[Any]:
        """The data of the publications among the news."""
        return [pub["data"] for pub in await self.pushes("pub")]


def outcome(reply: Any, method: str) -> Any:
    """What a reply carries: its result or its error."""
    return None if reply is None else reply.get(method, reply.get("error"))


async def members(node: Node, channel: str = "c") -> Mapping[str, ClientInfo]:
    """Who is in a channel, whatever its options say of presence."""
    return await settled(node.presence_store.members(channel))


@asynccontextmanager
async def talking(
    node: Node,
    *,
    connected: bool = True,
    ends: bool | None = None,
    codec: Codec = CENTRIFUGE_JSON_ASGI,
) -> AsyncIterator[Talk]:
    """A client in conversation, for as long as the block lasts or until it is ended.

    With `ends` the server must have ended it, or not, when the block is left.
    """
    transport = MemoryTransport(codec)
    async with connect(node, transport, ready=False) as client:
        talk = Talk(node, client, transport)
        if connected:
            await talk.connect()
            await talk.news()
        yield talk
    if ends is not None:
        assert (client.end is not CONNECTION_CLOSED) is ends


class FakeVerifier:
    """Knows a few tokens by heart; what it knows of one may also be an exception."""

    def __init__(
        self,
        connections: Mapping[str, ConnectionGrant | Exception] | None = None,
        subscriptions: Mapping[str, SubscriptionClaims | Exception] | None = None,
    ) -> None:
        self.connections = dict(connections or {})
        self.subscriptions = dict(subscriptions or {})

    async def verify_connection(self, token: str) -> ConnectionGrant:
        await trio.lowlevel.checkpoint()
        found = self.connections[token]
        if isinstance(found, Exception):
            raise found
        return found

    async def verify_subscription(self, token: str) -> SubscriptionClaims:
        await trio.lowlevel.checkpoint()
        found = self.subscriptions[token]
        if isinstance(found, Exception):
            raise found
        return found
