"""Where blocked users and revoked tokens are kept: the contract, and the store that keeps nothing.

`sqlite_denials` has the store that outlives the process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from repeater.access.grants import Denial


class DenialStore(Protocol):
    """Keeps blocked users and revoked tokens, so that they outlive the process.

    The node holds the denials in force in its memory; it loads all of them once and saves each
    change. A store that several nodes share tells each node the other nodes' changes.
    """

    async def load(self) -> Sequence[Denial]:
        """All denials in force. Called once, before `run` and before the first client.

        Raises:
            BrokerError: the store failed.
        """

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Tell `apply` what other nodes saved, until cancelled. Lives in the node's nursery."""

    async def save(self, denial: Denial) -> None:
        """Keep a denial in place of the one with the same key; a `lifted` one only removes it.

        If `save` is cancelled, the change was made or not. After `save` has returned, a crash does
        not undo the change.

        Raises:
            BrokerError: the store failed, and nothing was kept. A store behind a network may have
                kept it; then `run` applies it.
        """

    async def sweep(self, now: int) -> None:
        """Forget the denials that expired up to `now`, in Unix seconds.

        Raises:
            BrokerError: the store failed.
        """


class MemoryDenials:
    """Keeps nothing: blocks and revocations end with the process."""

    async def load(self) -> Sequence[Denial]:
        """Nothing: this store never has denials."""
        return ()

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Wait until cancelled: no other node uses this store."""
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        """Do nothing: the node itself holds the denial."""

    async def sweep(self, now: int) -> None:
        """Do nothing: this store has nothing to forget."""
