"""How many subscribers there may be: in all, from one address, and new ones a second.

Asked before a connection is upgraded, whatever way it comes in, and not for calls of the server
API: who is at the limit can still publish. Nothing is remembered of a client while its limit is
off; one that is switched on counts those who come from then on.
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
    """Who may still come in. Lives inside the node; needs no end."""

    def __init__(self, connections: Callable[[], int], refused: Counter[str]) -> None:
        self._connections = connections
        self._refused = refused
        self._arrivals = TokenBucket()
        self._addresses: dict[Client, str] = {}
        self._from: Counter[str] = Counter()

    def check(self, limits: LimitOptions, address: str) -> None:
        """Let one more in, from this address, which counts only where addresses do.

        Raises:
            RefusedError: 503 for too many in all or too many at once, 429 for too many from
                there.
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
        """It came in from there, where addresses count."""
        if limits.connections_per_address and client.end is None:
            key = self._addresses[client] = address_key(address)
            self._from[key] += 1

    def leave(self, client: Client) -> None:
        """It has left. Idempotent; also for who never arrived."""
        key = self._addresses.pop(client, None)
        if key is None:
            return
        self._from[key] -= 1
        if not self._from[key]:
            del self._from[key]
