"""Rate limits: a token bucket for each address or account; and what counts wrong sign-ins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from repeater.clients.throttle import TokenBuckets
from repeater.comments.options import Rate
from repeater.comments.problems import TOO_MANY, WRONG, ProblemError


class KnownBrowser(msgspec.Struct, frozen=True):
    """A browser in which somebody signed in before: to which account, and the browser's own id."""

    account: str
    id: str


class RateLimit:
    """The buckets of one limit. If there are too many, the least recently used is forgotten."""

    def __init__(self, rate: Rate, memory: int) -> None:
        self._buckets = TokenBuckets(rate.burst, rate.per_second, memory)

    def take(self, key: str) -> None:
        """Take one token from the key's bucket; the bucket of a new key is full.

        Raises:
            ProblemError: the bucket is empty (429), with the time until its next token.
        """
        wait = self._buckets.take(key)
        if wait:
            raise ProblemError(TOO_MANY, retry_after=wait)

    def give_back(self, key: str) -> None:
        """Give back a token that `take` took."""
        self._buckets.give_back(key)


class Guesses:
    """Counts the wrong passwords for each account, so that strangers lock nobody out.

    A stranger's wrong passwords count for the account and the stranger's address, and, with a far
    higher limit, for the account alone. A browser in which the user signed in before has a count
    of its own, which no stranger can use up.
    """

    def __init__(self, one: Rate, all_together: Rate, memory: int) -> None:
        """Make the limits: of one address or known browser, and of all addresses together."""
        self._of_browser = RateLimit(one, memory)
        self._of_address = RateLimit(one, memory)
        self._of_account = RateLimit(all_together, memory)

    @contextmanager
    def attempt(self, account: str, peer: str, browser: KnownBrowser | None) -> Iterator[None]:
        """Count the attempt that the block makes, if the block raises WRONG.

        The token is taken before, so that attempts at the same time cannot pass the limit.

        Raises:
            ProblemError: there were too many wrong attempts (429).
        """
        if browser is not None and browser.account == account:
            limits = [(self._of_browser, browser.id)]
        else:
            limits = [(self._of_address, f"{account} {peer}"), (self._of_account, account)]
        taken: list[tuple[RateLimit, str]] = []
        wrong = False
        try:
            for limit, key in limits:
                limit.take(key)
                taken.append((limit, key))
            yield
        except ProblemError as error:
            wrong = error.problem is WRONG
            raise
        finally:
            for limit, key in () if wrong else taken:
                limit.give_back(key)


def account_key(address: str) -> str:
    """A short name for the account with this address, which may be any text."""
    return hashlib.blake2b(address.encode(errors="replace"), digest_size=16).hexdigest()
