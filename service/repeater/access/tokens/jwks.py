"""An issuer's published keys (JWKS): fetched when a token needs them, kept until replaced.

Rule 1: there is one fetch at a time and a pause between two fetches, however many tokens come and
whatever keys they name. Rule 2: a token is not invalid if the issuer may have published its key
since the last fetch; then the client is told to try again. While the issuer is down, the known keys
stay in use.
"""

from __future__ import annotations

from typing import Any

import httpx
import jwt
import msgspec
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from repeater.access.http_client import failure_of, parts_of
from repeater.access.tokens.keys import Key, public_keys
from repeater.access.tokens.options import TokenOptions
from repeater.errors import BrokerError
from repeater.log import get_logger

log = get_logger("tokens")

KEY_ID_LIMIT = 255
"""Longest `kid` that is looked up, in characters; real `kid`s are hashes and short names."""

_ABSENT_LIMIT = 1_024  # names of keys that the newest set does not have


class PublishedKey(msgspec.Struct, frozen=True):
    """One member of a key set (RFC 7517); only the fields that make a public key are read."""

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
        """Whether the key may verify signatures; yes if the key set does not say."""
        return self.use in (None, "sig") and (self.key_ops is None or "verify" in self.key_ops)


class _Document(msgspec.Struct, frozen=True):
    keys: list[Any]


_FACTORIES = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


def parse_key_set(body: bytes) -> dict[str, list[Key]]:
    """The usable keys of a set by their `kid`. Members that cannot be used are left out.

    Raises:
        BrokerError: the body is not a key set at all.
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
    """One key for each algorithm that the published key allows; empty if it is not usable here."""
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
    """What one issuer's key set holds and did so far."""

    keys: int
    fetches: int
    failures: int


class _Fetch:
    """One fetch, as seen by the callers that wait for it."""

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
        self._failure = ""  # of the last fetch

    def statistics(self) -> KeySetStatistics:
        """A snapshot."""
        return KeySetStatistics(len(self._keys), self._fetches, self._failures)

    async def find(self, kid: str) -> list[Key]:
        """The key with this `kid`, once for each algorithm it allows; empty if it does not exist.

        Waits for a fetch if the key is unknown or the set is old, for `jwks_timeout` at most.
        All callers share one fetch; a cancelled caller leaves it to the others.

        Raises:
            BrokerError: the keys are not available now, so the key may exist or not.
        """
        if len(kid) > KEY_ID_LIMIT:
            return []
        if not self._knows(kid) and await self._refresh() and kid not in self._keys:
            self._note_absent(kid)
        if kid in self._keys:
            return self._keys[kid]
        if kid in self._absent:
            return []
        raise self._unavailable()

    def _unavailable(self) -> BrokerError:
        failure = self._failure or "they were fetched a moment ago, without the token's key"
        return BrokerError(
            f"the issuer's keys are not available now: {self._issuer}: {failure}",
            f"see jwks_url; the next try is {self._options.jwks_retry_interval:g} s after this one",
        )

    def known(self, kid: str) -> list[Key]:
        """The same without asking the issuer: what the newest set has."""
        return self._keys.get(kid, [])

    def _knows(self, kid: str) -> bool:
        fresh = trio.current_time() < self._fetched_at + self._options.jwks_ttl
        return fresh and kid in self._keys

    def _note_absent(self, kid: str) -> None:
        """Remember until the next fetch that the newest set does not have this key.

        When the memory is full, the clients with other such keys are told to try again.
        """
        if len(self._absent) < _ABSENT_LIMIT:
            self._absent.add(kid)

    async def _refresh(self) -> bool:
        """Join the current fetch, or start one if it is time; returns whether it succeeded."""
        fetch = self._under_way
        if fetch is None:
            if trio.current_time() < self._tried_at + self._options.jwks_retry_interval:
                return False
            fetch = self._under_way = _Fetch()
            self._nursery.start_soon(self._run, fetch)
        await fetch.done.wait()  # `_run` has a deadline.
        return fetch.succeeded

    async def _run(self, fetch: _Fetch) -> None:
        """Fetch new keys, or keep the old ones if that fails. Always wakes the waiters."""
        self._fetches += 1
        try:
            self._keys = parse_key_set(await self._download())
            self._fetched_at = trio.current_time()
            fetch.succeeded = True
            self._failure = ""
        except BrokerError as error:
            self._failures += 1
            self._failure = str(error)
            log.warning("issuer's keys not fetched", issuer=self._issuer, reason=str(error))
        finally:
            # Also after a failure: the issuer may have published these keys by now.
            self._absent.clear()
            self._tried_at = trio.current_time()
            self._under_way = None
            fetch.done.set()

    async def _download(self) -> bytes:
        """The body of the issuer's answer.

        Raises:
            BrokerError: no answer in time, no good answer, or an answer that is too long.
        """
        # Not compressed: a short compressed body could become a long one.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        body = bytearray()
        with trio.move_on_after(self._options.jwks_timeout) as scope:
            try:
                async with self._client.stream(
                    "GET", self._options.jwks_url, headers=headers
                ) as response:
                    if response.status_code != httpx.codes.OK:
                        raise BrokerError(f"answered {response.status_code}")
                    async for chunk in parts_of(response):
                        body += chunk
                        if len(body) > self._options.jwks_size_limit:
                            # Unlike an exception, this also ends the client's generators.
                            scope.cancel()
            except httpx.HTTPError as error:
                raise BrokerError(failure_of(error)) from error
        if len(body) > self._options.jwks_size_limit:
            raise BrokerError("the answer is too long")
        if scope.cancelled_caught:
            raise BrokerError(f"no answer in {self._options.jwks_timeout:g} s")
        return bytes(body)
