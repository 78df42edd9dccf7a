"""Passwords: argon2 in a few worker threads. A sign-in does not show whether an account exists.

Rule: every sign-in costs one verification, against a dummy hash if the account does not exist.
"""

from __future__ import annotations

import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from repeater.comments.threads import Workers

# OWASP's first choice for argon2id: 19 MiB, 2 passes, 1 lane; about 25 ms of one core.
_HASHER: Final = PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)


class Passwords:
    """Hashes and verifies passwords. Made by `make`; owns nothing that must be closed."""

    def __init__(self, workers: Workers, dummy: str) -> None:
        self._workers = workers
        self._dummy = dummy

    @classmethod
    async def make(cls, workers: Workers) -> Passwords:
        """A new object, with a dummy hash that costs as much as a real hash."""
        return cls(workers, await workers.run(_HASHER.hash, secrets.token_hex()))

    async def hash(self, password: str) -> str:
        """The salted hash to store in place of the password.

        Raises:
            ProblemError: too many are being hashed (503).
        """
        return await self._workers.run(_HASHER.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the hash `stored` is of this password; False for None, after the same time.

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
