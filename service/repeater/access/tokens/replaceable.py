"""A verifier whose keys can be exchanged while clients connect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from repeater.access.grants import ConnectionGrant, SubscriptionClaims
from repeater.access.http_client import trusted_certificates
from repeater.access.tokens.keys import KeyRing
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import JWTVerifier, VerifierStatistics, open_verifier
from repeater.errors import open_service_nursery

_GRACE = 1.0  # seconds beyond the longest wait for an issuer's keys


class ReplaceableVerifier:
    """Implements `TokenVerifier` by its newest verifier. Made by `open_replaceable_verifier`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._retire = trio.Event()
        self._verifier: JWTVerifier | None = None

    def statistics(self) -> VerifierStatistics | None:
        """The newest verifier's statistics; its counts begin when it came into force."""
        return None if self._verifier is None else self._verifier.statistics()

    async def verify_connection(self, token: str) -> ConnectionGrant:
        """As `JWTVerifier`."""
        assert self._verifier is not None
        return await self._verifier.verify_connection(token)

    async def verify_subscription(self, token: str) -> SubscriptionClaims:
        """As `JWTVerifier`."""
        assert self._verifier is not None
        return await self._verifier.verify_subscription(token)

    async def replace(self, connection: TokenOptions, subscription: TokenOptions) -> None:
        """Prove tokens by these options from now on. If cancelled or failed, nothing changes.

        Verifications that began with the old options end with the old options.

        Raises:
            ValueError: a key is not usable; the text names its option and never holds the key.
        """
        for options in (connection, subscription):
            # Check here: an error in the nursery's task would end every task of the nursery.
            KeyRing(options)
            trusted_certificates(options.jwks_ca_file)
        retire = trio.Event()
        verifier = await self._nursery.start(_hold, connection, subscription, retire)
        self._retire.set()
        self._verifier, self._retire = verifier, retire


async def _hold(
    connection: TokenOptions,
    subscription: TokenOptions,
    retire: trio.Event,
    task_status: trio.TaskStatus[JWTVerifier],
) -> None:
    """Keep a verifier open until it is replaced and no caller can still be waiting for it."""
    async with open_verifier(connection, subscription) as verifier:
        task_status.started(verifier)
        await retire.wait()  # no deadline: lasts as long as the verifier is in force
        longest = max(connection.jwks_timeout, subscription.jwks_timeout)
        await trio.sleep(longest + _GRACE)


@asynccontextmanager
async def open_replaceable_verifier(
    connection: TokenOptions, subscription: TokenOptions
) -> AsyncIterator[ReplaceableVerifier]:
    """Open a verifier; it must not be used after the block.

    Raises:
        ValueError: a key is not usable; the text names its option and never holds the key.
    """
    async with open_service_nursery() as nursery:
        verifier = ReplaceableVerifier(nursery)
        await verifier.replace(connection, subscription)
        yield verifier
