"""Passwords: argon2 in a few worker threads, and a sign-in does not tell whether an account exists.

Rule: every sign-in costs one verification, against a dummy hash where there is no account.
"""

from __future__ import annotations

import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from repeater.comments.threads import Workers

# OWASP's first choice for argon2id: 19 MiB, 2 passes, 1 lane; some 25 ms of one core.
_HASHER: Final = PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)


class Passwords:
    """Hashes and verifies. Made by `make`; lives as long as its holder likes."""

    def __init__(self, workers: Workers, dummy: str) -> None:
        self._workers = workers
        self._dummy = dummy

    @classmethod
    async def make(cls, workers: Workers) -> Passwords:
        """With a dummy hash that costs what a real one costs."""
        return cls(workers, await workers.run(_HASHER.hash, secrets.token_hex()))

    async def hash(self, password: str) -> str:
        """What is to be stored in place of the password; salted.

        Raises:
            ProblemError: too many are being hashed (503).
        """
        return await self._workers.run(_HASHER.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one's; False for None, after the same time.

        Raises:
            ProblemError: too many are being verified (503).
        """
        right = await self._workers.run(_is_right, stored or self._dummy, password)
        return right and stored is not None


def _is_right(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except VerifyMismatchError:
        return False
