"""Where blocked users and revoked tokens are kept: the contract, and the store that keeps nothing.

`sqlite_denials` has the store that outlives the process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from repeater.access.grants import Denial


class DenialStore(Protocol):
    """Where blocked users and revoked tokens are kept, so that they outlive the process.

    The node itself knows those in force; it asks for all of them once and saves each change. A
    store that nodes share tells each of the others' changes.
    """

    async def load(self) -> Sequence[Denial]:
        """Everything that is in force. Called once, before `run` and before there are clients.

        Raises:
            BrokerError: the store failed.
        """

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Tell `apply` what other nodes saved, until cancelled. Lives in the node's nursery."""

    async def save(self, denial: Denial) -> None:
        """Keep it in place of one with the same key, or forget that if it is `lifted`.

        Cancelled, it was kept or not. Once it returned, a crash does not undo it.

        Raises:
            BrokerError: the store failed, and nothing was kept.
        """

    async def sweep(self, now: int) -> None:
        """Forget what expired up to now, Unix seconds.

        Raises:
            BrokerError: the store failed.
        """


class MemoryDenials:
    """Keeps nothing: blocks and revocations end with the process."""

    async def load(self) -> Sequence[Denial]:
        """There are none."""
        return ()

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """There are no other nodes to hear from."""
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        """The node knows it, which is all."""

    async def sweep(self, now: int) -> None:
        """There is nothing to forget."""
