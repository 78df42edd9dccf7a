"""Limits on the number of subscribers: in all, from one address, and new ones a second.

Checked before a connection is upgraded, for every transport, and not for calls of the server API:
a back end can publish even when the limit is reached. While a limit is off, nothing is counted for
it; a limit that is switched on counts the clients that come from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from repeater.clients.addresses import address_key
from repeater.clients.throttle import TokenBucket
from repeater.front.auth import RefusedError

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.options import LimitOptions


class Admission:
    """Checks whether one more connection is allowed. Lives inside the node; needs no end."""

    def __init__(self, connections: Callable[[], int], refused: Counter[str]) -> None:
        self._connections = connections
        self._refused = refused
        self._arrivals = TokenBucket()
        self._addresses: dict[Client, str] = {}
        self._from: Counter[str] = Counter()

    def check(self, limits: LimitOptions, address: str) -> None:
        """Allow one more connection. The address matters only if a limit counts addresses.

        Raises:
            RefusedError: 503 for too many in all or too many new ones a second, 429 for too many
                from this address.
        """
        if limits.connections and self._connections() >= limits.connections:
            self._refuse("connections", HTTPStatus.SERVICE_UNAVAILABLE)
        most = limits.connections_per_address
        if most and self._from[address_key(address)] >= most:
            self._refuse("connections_per_address", HTTPStatus.TOO_MANY_REQUESTS)
        rate = limits.connection_rate
        if rate and self._arrivals.take(limits.connection_burst or rate, rate):
            self._refuse("connection_rate", HTTPStatus.SERVICE_UNAVAILABLE)

    def _refuse(self, limit: str, status: HTTPStatus) -> None:
        self._refused[limit] += 1
        raise RefusedError(status)

    def arrive(self, limits: LimitOptions, client: Client, address: str) -> None:
        """Count a client that came from this address, if a limit counts addresses."""
        if limits.connections_per_address and client.end is None:
            key = self._addresses[client] = address_key(address)
            self._from[key] += 1

    def leave(self, client: Client) -> None:
        """Stop counting a client that has left. Idempotent, and fine for one never counted."""
        key = self._addresses.pop(client, None)
        if key is None:
            return
        self._from[key] -= 1
        if not self._from[key]:
            del self._from[key]
