"""The back end behind HTTP: each kind of question has an address of its own.

This module does not know connections. Its callers act on the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import httpx

from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.backend import wire
from repeater.backend.contract import BackendStatistics
from repeater.backend.endpoint import Endpoint
from repeater.backend.options import CallbackKind, CallbackOptions
from repeater.backend.turns import Lines
from repeater.errors import ApplicationError, DisconnectError
from repeater.json_text import accepted
from repeater.protocol.centrifugo.commands import ConnectRequest

G = TypeVar("G")


class HTTPBackend:
    """Implements `Backend`. It needs no end; the owner of `client` outlives it."""

    def __init__(self, options: CallbackOptions, client: httpx.AsyncClient) -> None:
        self.kinds = options.kinds
        self.forward_headers = options.forward_headers
        self.forward_emulated_headers = options.forward_emulated_headers
        lines = Lines()
        self._endpoints = {kind: Endpoint(kind, options, client, lines) for kind in options.kinds}

    def statistics(self) -> BackendStatistics:
        """A snapshot."""
        return BackendStatistics(
            {kind: endpoint.statistics() for kind, endpoint in self._endpoints.items()}
        )

    async def connect(self, caller: Caller, request: ConnectRequest) -> ConnectionGrant:
        """Who is the caller, and which channels does the caller hear? Raises as `Backend` says."""
        any_bytes = caller.protocol == "protobuf"
        body = wire.encode_question(
            caller,
            token=request.token,
            name=request.name,
            version=request.version,
            data=bytes(request.data) if any_bytes else accepted(request.data),
        )
        return await self._ask("connect", caller, body, wire.read_connect)

    async def refresh(self, caller: Caller) -> Renewal:
        """May a connection go on after its expiry? Raises as `Backend` says."""
        return await self._ask("refresh", caller, wire.encode_question(caller), wire.read_refresh)

    async def subscribe(
        self, caller: Caller, channel: str, token: str, data: bytes
    ) -> SubscriptionGrant:
        """May the caller hear this channel? Raises as `Backend` says."""
        body = wire.encode_question(caller, channel=channel, token=token, data=data)
        return await self._ask("subscribe", caller, body, wire.read_subscribe)

    async def publish(self, caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        """May the caller publish this data? Raises as `Backend` says."""
        body = wire.encode_question(caller, channel=channel, data=data)
        return await self._ask("publish", caller, body, wire.read_publish)

    async def sub_refresh(self, caller: Caller, channel: str) -> Renewal:
        """May a subscription go on after its expiry? Raises as `Backend` says."""
        body = wire.encode_question(caller, channel=channel)
        return await self._ask("sub_refresh", caller, body, wire.read_refresh)

    async def rpc(self, caller: Caller, method: str, data: bytes) -> bytes:
        """Answer a call: any bytes, or empty without a result. Raises as `Backend` says."""
        body = wire.encode_question(caller, method=method, data=data)
        return await self._ask("rpc", caller, body, wire.read_rpc)

    async def _ask(
        self,
        kind: CallbackKind,
        caller: Caller,
        body: bytes,
        read: Callable[[bytes], G | wire.Refusal],
    ) -> G:
        found = await self._endpoints[kind].ask(body, caller, read)
        if isinstance(found, ApplicationError | DisconnectError):
            raise found
        return found
