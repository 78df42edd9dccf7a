"""An issuer's published keys (JWKS): fetched when a token needs them, kept while they serve.

Rule 1: however many tokens come and whatever keys they name, there is one fetch at a time and a
pause between two. Rule 2: no token is called invalid for a key that the issuer may have published
since the last fetch; its client is told to try again. Keys outlive an issuer that is down.
"""

from __future__ import annotations

from typing import Any

import httpx
import jwt
import msgspec
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from repeater.access.tokens.keys import Key, public_keys
from repeater.access.tokens.options import TokenOptions
from repeater.errors import BrokerError
from repeater.log import get_logger

log = get_logger("tokens")

KEY_ID_LIMIT = 255
"""Longest `kid` in characters that is looked for; real ones are hashes and short names."""

_ABSENT_LIMIT = 1_024  # names of keys that the newest set does not have


class PublishedKey(msgspec.Struct, frozen=True):
    """One member of a key set (RFC 7517); only what makes a public key is read."""

    kty: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None

    @property
    def signs(self) -> bool:
        """Whether its owner says, or at least does not deny, that it signs."""
        return self.use in (None, "sig") and (self.key_ops is None or "verify" in self.key_ops)


class _Document(msgspec.Struct, frozen=True):
    keys: list[Any]


_FACTORIES = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


def parse_key_set(body: bytes) -> dict[str, list[Key]]:
    """The usable keys of a set by their `kid`. Members that can't be used are left out.

    Raises:
        BrokerError: it is not a key set at all.
    """
    try:
        document = msgspec.json.decode(body, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BrokerError("the answer is not a key set") from None
    found: dict[str, list[Key]] = {}
    for member in document.keys:
        try:
            published = msgspec.convert(member, PublishedKey)
        except msgspec.ValidationError:
            continue
        found.setdefault(published.kid, []).extend(_keys_of(published))
    return found


def _keys_of(published: PublishedKey) -> list[Key]:
    """One key for each algorithm that the published one allows; empty if Repeater cannot use it."""
    factory = _FACTORIES.get(published.kty)
    if factory is None or not published.signs:
        return []
    public = {
        name: value
        for name in ("kty", "crv", "x", "y", "n", "e")
        if (value := getattr(published, name)) is not None
    }
    try:
        keys = public_keys(factory(public))
    except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm):
        return []
    return [key for key in keys if published.alg in (None, key.algorithm)]


class KeySetStatistics(msgspec.Struct, frozen=True):
    """What one issuer's key set did so far."""

    keys: int
    fetches: int
    failures: int


class _Fetch:
    """One fetch, as those who wait for it see it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.succeeded = False


class KeySet:
    """One issuer's keys. Lives inside a verifier, whose nursery runs the fetches and ends them."""

    def __init__(
        self, options: TokenOptions, client: httpx.AsyncClient, nursery: trio.Nursery
    ) -> None:
        self._options = options
        self._client = client
        self._nursery = nursery
        self._issuer = httpx.URL(options.jwks_url).host
        self._keys: dict[str, list[Key]] = {}
        # Keys that tokens named and that the newest set is known not to have.
        self._absent: set[str] = set()
        self._under_way: _Fetch | None = None
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetches = 0
        self._failures = 0

    def statistics(self) -> KeySetStatistics:
        """A snapshot."""
        return KeySetStatistics(len(self._keys), self._fetches, self._failures)

    async def find(self, kid: str) -> list[Key]:
        """The key of this name, once for each algorithm that it allows; empty for no such key.

        Waits for a fetch if the key is unknown or the set is old, for `jwks_timeout` at most.
        All callers share one fetch; a cancelled caller leaves it to the others.

        Raises:
            BrokerError: it can't be told now whether there is such a key.
        """
        if len(kid) > KEY_ID_LIMIT:
            return []
        if not self._knows(kid) and await self._refresh() and kid not in self._keys:
            self._note_absent(kid)
        if kid in self._keys:
            return self._keys[kid]
        if kid in self._absent:
            return []
        raise BrokerError("the issuer's keys cannot be had now")

    def _knows(self, kid: str) -> bool:
        fresh = trio.current_time() < self._fetched_at + self._options.jwks_ttl
        return fresh and kid in self._keys

    def _note_absent(self, kid: str) -> None:
        """Remember the verdict until the next fetch; when full, the others are told to wait."""
        if len(self._absent) < _ABSENT_LIMIT:
            self._absent.add(kid)

    async def _refresh(self) -> bool:
        """Join the fetch that is under way, or start one if it is time; whether it succeeded."""
        fetch = self._under_way
        if fetch is None:
            if trio.current_time() < self._tried_at + self._options.jwks_retry_interval:
                return False
            fetch = self._under_way = _Fetch()
            self._nursery.start_soon(self._run, fetch)
        await fetch.done.wait()  # `_run` has a deadline.
        return fetch.succeeded

    async def _run(self, fetch: _Fetch) -> None:
        """Replace the keys, or keep them if that fails. Wakes whoever waits in any case."""
        self._fetches += 1
        try:
            self._keys = parse_key_set(await self._download())
            self._fetched_at = trio.current_time()
            fetch.succeeded = True
        except BrokerError as error:
            self._failures += 1
            log.warning("issuer's keys not fetched", issuer=self._issuer, reason=str(error))
        finally:
            # Also after a failure: then nobody knows what the issuer has by now.
            self._absent.clear()
            self._tried_at = trio.current_time()
            self._under_way = None
            fetch.done.set()

    async def _download(self) -> bytes:
        """The body of the issuer's answer.

        Raises:
            BrokerError: no answer in time, no answer at all, or one that is too long.
        """
        # Compressed, a short body could be a long one.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        body = bytearray()
        with trio.move_on_after(self._options.jwks_timeout) as scope:
            try:
                async with self._client.stream(
                    "GET", self._options.jwks_url, headers=headers
                ) as response:
                    if response.status_code != httpx.codes.OK:
                        raise BrokerError(f"answered {response.status_code}")
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > self._options.jwks_size_limit:
                            # Unlike an exception here, it ends the client's generators, too.
                            scope.cancel()
            except httpx.HTTPError as error:
                raise BrokerError(type(error).__name__) from error
        if len(body) > self._options.jwks_size_limit:
            raise BrokerError("the answer is too long")
        if scope.cancelled_caught:
            raise BrokerError("no answer in time")
        return bytes(body)
