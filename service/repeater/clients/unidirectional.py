"""The unidirectional conversation: a client says who it is, and then only listens (section 15).

It hears pushes without their envelope, its own connect result first; what it may hear are
server-side subscriptions. Errors of `connect` become disconnects, since there are no replies.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.clients.client import Client
from repeater.clients.commands import connect
from repeater.errors import (
    BAD_REQUEST,
    EXPIRED,
    PERMISSION_DENIED,
    SERVER_ERROR,
    TOO_MANY_REQUESTS,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import ConnectRequest, parse_connect
from repeater.protocol.centrifugo.replies import Push

_DISCONNECTS: Final = {
    ErrorCode.TOKEN_EXPIRED: EXPIRED,
    ErrorCode.EXPIRED: EXPIRED,
    ErrorCode.TOO_MANY_REQUESTS: TOO_MANY_REQUESTS,
    ErrorCode.PERMISSION_DENIED: PERMISSION_DENIED,
}


class UnidirectionalSession:
    """A client that says who it is and then only listens (protocol, section 15)."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    async def receive(self, message: str | bytes) -> None:
        """The first message is the connect request; what comes later is not listened to."""
        if self._client.ready or self._client.end is not None:
            return
        try:
            if isinstance(message, bytes):
                raise DisconnectError(BAD_REQUEST)
            await self._connect(parse_connect(message))
        except DisconnectError as error:
            self._client.disconnect(error.disconnect)
        except ReplyError as error:
            self._client.disconnect(_DISCONNECTS.get(error.code, SERVER_ERROR))
        self._client.outbox.flush()

    async def _connect(self, request: ConnectRequest) -> None:
        result, joinings = await connect.connect(self._client, request)
        push = Push(connect=msgspec.structs.replace(result, pong=False, node=""))
        self._client.outbox.push(self._client.codec.push(push))
        await connect.go_live(self._client, joinings)
