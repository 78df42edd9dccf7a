"""The unidirectional conversation: a client sends `connect` and then only listens (section 15).

The client gets pushes without their envelope, its own connect result first. All its subscriptions
are server-side. The protocol has no replies, so errors of `connect` become disconnects.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from repeater.clients.client import Client
from repeater.clients.commands import connect
from repeater.clients.traffic import count_frames
from repeater.errors import (
    BAD_REQUEST,
    Disconnect,
    DisconnectError,
    ReplyError,
    end_for,
)
from repeater.protocol.centrifugo.commands import NOT_TEXT, ConnectRequest, parse_connect
from repeater.protocol.centrifugo.replies import ConnectResult, Push

if TYPE_CHECKING:
    from repeater.causes import Why
    from repeater.clients.contract import ClientNode
    from repeater.protocol.centrifugo.codecs import Codec


class UnidirectionalSession:
    """The conversation of one unidirectional client. Lives inside its connection's handler."""

    __slots__ = ("_client", "_node")

    def __init__(self, node: ClientNode, client: Client) -> None:
        self._node = node
        self._client = client

    async def receive(self, message: str | bytes) -> None:
        """Carry out the first message, the connect request. Later ones are counted only."""
        if self._client.ready or self._client.end is not None:
            count_frames(self._node, self._client, 1)
            return
        try:
            if isinstance(message, bytes):
                raise DisconnectError(BAD_REQUEST, NOT_TEXT)
            await self._connect(parse_connect(message))
        except DisconnectError as error:
            self._refuse(error.disconnect, error.why)
        except ReplyError as error:
            self._refuse(end_for(error), error.why)
        self._client.outbox.flush()

    def _refuse(self, end: Disconnect, why: Why) -> None:
        self._node.refusals.end(self._client, end, why, "connect")

    async def _connect(self, request: ConnectRequest) -> None:
        connected = await connect.connect(self._node, self._client, request, unidirectional=True)
        connected.complete(partial(self._say, connected.codec))
        connected.announce()

    def _say(self, codec: Codec, result: ConnectResult) -> bytes:
        push = Push(connect=msgspec.structs.replace(result, pong=False, node=""))
        return codec.push(push)
