"""Nodes with limits, clients that talk to them, and connections that are counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.clients.limits import Place
from repeater.clients.session import Session
from repeater.node import Node
from repeater.options import LimitOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.serving.server import Server
from repeater.testing import MemoryTransport, connect
from tests.serving import UPGRADE, Peer, peer

CONNECT = b'{"connect":{},"id":1}'
PATHS = ("/ws?channel=news", "/connection/websocket", "/connection/uni_websocket")


def limited(**limits: Any) -> NodeOptions:
    return NodeOptions(limits=LimitOptions(**{"command_burst": 0, **limits}))


class Talk:
    """A connected client and what it is told."""

    def __init__(self, session: Session, transport: MemoryTransport) -> None:
        self.session = session
        self.transport = transport

    async def say(self, *lines: bytes) -> list[Any]:
        """Send one message; the replies to it."""
        before = len(self.transport.sent)
        await self.session.receive(b"\n".join(lines).decode())
        return [json.loads(chunk) for chunk in self.transport.sent[before:]]


@asynccontextmanager
async def talking(node: Node, user: str = "") -> AsyncIterator[Talk]:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        client.grant = ConnectionGrant(user)  # as an HTTP request's credentials
        client.place = Place(node.places)
        talk = Talk(Session(node, client), transport)
        try:
            await talk.say(CONNECT)
            yield talk
        finally:
            client.place.leave()


async def knock(server: Server, path: str, *, reused: bool) -> bytes:
    """The status line that an upgrade gets on a connection that ends then."""
    async with peer(server) as client:
        if reused:  # then Quart serves it
            assert b" 200 " in await client.call("GET", "/health")
        await client.stream.send_all(UPGRADE.format(path=path, more="").encode())
        return await client.until(b"\r\n")


@asynccontextmanager
async def inside(server: Server, path: str, *, reused: bool) -> AsyncIterator[Peer]:
    """A subscriber, in the hub."""
    async with peer(server) as client:
        if reused:
            assert b" 200 " in await client.call("GET", "/health")
        await client.stream.send_all(UPGRADE.format(path=path, more="").encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")
        await wait_all_tasks_blocked()  # behind ASGI, it is upgraded before it is in the hub
        yield client


async def emptied(server: Server) -> None:
    """Until the hub has noticed that they all left, which is the kernel's to tell."""
    while server.node.registry.clients or len(server.node.places):
        await trio.lowlevel.checkpoint()
