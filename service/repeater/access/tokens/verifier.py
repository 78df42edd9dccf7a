"""Proves tokens: first the signature, then audience, issuer and times, then the grant.

A verification needs no thread: measured, it takes 25 us with HS256, 50 to 110 us with RS256, ES256
and EdDSA, and less than 400 us with ES384 and ES512.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import httpx
import jwt
import msgspec
import trio
from jwt.utils import base64url_decode

from repeater.access.grants import (
    ConnectionGrant,
    SubscriptionClaims,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.access.http_client import make_client
from repeater.access.tokens.claims import (
    C,
    ConnectionToken,
    SubscriptionToken,
    check_times,
    connection_grant,
    decode_claims,
    subscription_claims,
    user_of,
)
from repeater.access.tokens.diagnosis import Keys, Parts, another, not_a_token, unproven
from repeater.access.tokens.jwks import KeySet, KeySetStatistics
from repeater.access.tokens.keys import HMAC_SAFE_LENGTH, PUBLIC_KEY_ALGORITHMS, KeyRing
from repeater.access.tokens.options import TokenOptions
from repeater.errors import BrokerError, open_service_nursery
from repeater.log import get_logger

log = get_logger("tokens")

Clock = Callable[[], float]
"""The time in Unix seconds."""

_TABLES = ("token", "subscription_token")  # of the configuration
_LIBRARY = jwt.PyJWS()
_BASE64URL = re.compile("[A-Za-z0-9_-]*")
_HEADER_LIMIT = 8_192  # characters; one with a chain of certificates has some 6,000
_SIGNATURE_LIMIT = 4_096  # characters; that of an RSA key of 16,384 bits has 2,731


def _take_apart(token: str) -> Parts:
    """Take a token apart, and decode its header and its signature.

    Raises:
        TokenInvalidError: the text is not a token, or its header has an unknown critical part.
    """
    signed, dot, signature = token.rpartition(".")
    header, inner, payload = signed.partition(".")
    # Both are decoded before anything is proven.
    if not (dot and inner) or len(header) > _HEADER_LIMIT or len(signature) > _SIGNATURE_LIMIT:
        raise not_a_token(token)
    try:
        # The signature is not checked here: `TokenProver.prove` decides which key may prove it.
        found = _LIBRARY.decode_complete(
            f"{header}..{signature}", options={"verify_signature": False}
        )
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise not_a_token(token) from None
    algorithm = found["header"].get("alg")
    if not isinstance(algorithm, str):
        raise TokenInvalidError("its header has no alg", "sign it with a JWT library")
    kid = found["header"].get("kid")
    return Parts(algorithm, kid, payload, signed.encode(), found["signature"])


def _decode(payload: str) -> bytes:
    if _BASE64URL.fullmatch(payload) is None:
        raise not_a_token(payload)
    try:
        return base64url_decode(payload)
    except ValueError:  # its length
        raise not_a_token(payload) from None


class TokenProver:
    """Proves one kind of token by one set of options. Lives inside a verifier."""

    def __init__(self, keys: Keys, other: Keys | None, now: Clock) -> None:
        """Take the keys of this kind, and those of the other kind if these are others."""
        self.options = keys.options
        self.keys = keys
        self._other = other
        self._ring = keys.ring
        self._key_set = keys.key_set
        self._now = now

    async def prove(self, token: str) -> bytes:
        """The payload of a token that was signed with one of our keys.

        Raises:
            TokenInvalidError: the text is not a token, or was not signed with one of our keys.
            BrokerError: the issuer's keys are not available now.
        """
        parts = _take_apart(token)
        if self._ring.proves(parts.algorithm, parts.signed, parts.signature, self._now()):
            return _decode(parts.payload)
        if await self._issuer_proves(parts):
            return _decode(parts.payload)
        raise unproven(parts, self.keys, self._other)

    async def _issuer_proves(self, parts: Parts) -> bool:
        if self._key_set is None or parts.algorithm not in PUBLIC_KEY_ALGORITHMS or not parts.kid:
            return False
        return any(
            key.algorithm == parts.algorithm and key.proves(parts.signed, parts.signature)
            for key in await self._key_set.find(parts.kid)
        )

    async def read(self, token: str, kind: type[C]) -> tuple[str, C]:
        """The user and the claims of a token that is for us. The token's times are not checked.

        Raises:
            TokenInvalidError: the token is not proven, has another audience or issuer, or has
                invalid claims.
            BrokerError: the issuer's keys are not available now.
        """
        payload = await self.prove(token)
        claims = decode_claims(payload, kind)
        wanted = self.options
        if not _admits(wanted.audience, wanted.audience_regex, claims.audiences):
            raise another("aud", claims.audiences, self.keys, "audience")
        if not _admits(wanted.issuer, wanted.issuer_regex, [claims.iss or ""]):
            raise another("iss", [claims.iss] if claims.iss else [], self.keys, "issuer")
        return user_of(payload, claims, wanted.user_id_claim), claims


def _admits(exact: str, pattern: re.Pattern[str] | None, values: list[str]) -> bool:
    """Whether one of the values matches the options; with empty options, always True."""
    if exact:
        return exact in values
    return pattern is None or any(pattern.fullmatch(value) for value in values)


class VerifierStatistics(msgspec.Struct, frozen=True):
    """How many verifications had which result, and the statistics of the issuers' key sets."""

    proven: int
    expired: int
    invalid: int
    unavailable: int
    key_sets: tuple[KeySetStatistics, ...]


class JWTVerifier:
    """The `TokenVerifier` for JWTs. Made and ended by `open_verifier`."""

    def __init__(
        self,
        connection: TokenProver,
        subscription: TokenProver,
        key_sets: tuple[KeySet, ...],
        now: Clock,
    ) -> None:
        self._connection = connection
        self._subscription = subscription
        self._key_sets = key_sets
        self._now = now
        self._proven = self._expired = self._invalid = self._unavailable = 0

    def statistics(self) -> VerifierStatistics:
        """A snapshot."""
        return VerifierStatistics(
            proven=self._proven,
            expired=self._expired,
            invalid=self._invalid,
            unavailable=self._unavailable,
            key_sets=tuple(key_set.statistics() for key_set in self._key_sets),
        )

    async def verify_connection(self, token: str) -> ConnectionGrant:
        """What a connection token grants. Cancelling it loses nothing.

        Waits only for an issuer's keys, for `jwks_timeout` at most.

        Raises:
            TokenExpiredError: past its `exp` or before its `nbf`.
            TokenInvalidError: the token is not proven, not for us, malformed, or is a subscription
                token.
            BrokerError: the issuer's keys are not available now.
        """
        await trio.lowlevel.checkpoint()
        with self._counted():
            user, claims = await self._connection.read(token, ConnectionToken)
            if claims.channel:
                raise TokenInvalidError(
                    "this is a subscription token, not a connection token",
                    "connect with a token without the claim channel",
                )
            check_times(claims, self._now(), self._connection.options.leeway)
            return connection_grant(user, claims)

    async def verify_subscription(self, token: str) -> SubscriptionClaims:
        """What a subscription token grants, and to which user. Cancelling it loses nothing.

        Waits only for an issuer's keys, for `jwks_timeout` at most.

        Raises:
            TokenExpiredError: past its `exp` or before its `nbf`.
            TokenInvalidError: the token is not proven, not for us, malformed, or names no channel.
            BrokerError: the issuer's keys are not available now.
        """
        await trio.lowlevel.checkpoint()
        with self._counted():
            user, claims = await self._subscription.read(token, SubscriptionToken)
            if not claims.channel:
                raise TokenInvalidError(
                    "no channel: this is no subscription token",
                    "write the channel's name as the claim channel",
                )
            check_times(claims, self._now(), self._subscription.options.leeway)
            return subscription_claims(user, claims.channel, claims)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count how one verification ends; a cancelled one is not counted."""
        try:
            yield
        except TokenExpiredError:
            self._expired += 1
            raise
        except TokenInvalidError:
            self._invalid += 1
            raise
        except BrokerError:
            self._unavailable += 1
            raise
        self._proven += 1


@asynccontextmanager
async def open_verifier(
    connection: TokenOptions,
    subscription: TokenOptions | None = None,
    *,
    now: Clock = time.time,
    client: httpx.AsyncClient | None = None,
) -> AsyncIterator[JWTVerifier]:
    """Open a verifier; it must not be used after the block.

    Args:
        connection: The options of connection tokens.
        subscription: The options of subscription tokens; the same options if None.
        now: The time in Unix seconds.
        client: Fetches the issuers' keys; the caller must close it. If None, a client is made
            when a key set needs one, and closed at the end of the block.

    Raises:
        ValueError: a key or `jwks_ca_file` is unusable; the text never holds a key.
    """
    kinds = [connection]
    if subscription is not None and subscription != connection:
        kinds.append(subscription)
    rings = [KeyRing(options) for options in kinds]
    for options in kinds:
        _warn_of_short_secret(options)
    async with AsyncExitStack() as stack:
        clients = {}
        for options in kinds:
            way = options.jwks_proxy, options.jwks_ca_file
            if client is None and options.jwks_url and way not in clients:
                made = make_client(proxy=options.jwks_proxy, ca_file=options.jwks_ca_file)
                clients[way] = await stack.enter_async_context(made)
        async with open_service_nursery() as nursery:
            key_sets = [
                KeySet(
                    options,
                    client or clients[options.jwks_proxy, options.jwks_ca_file],
                    nursery,
                )
                if options.jwks_url
                else None
                for options in kinds
            ]
            found = zip(_TABLES, kinds, rings, key_sets, strict=False)
            keys = [Keys(*one) for one in found]
            provers = [TokenProver(keys[0], None, now)]
            if len(keys) > 1:
                provers = [TokenProver(keys[0], keys[1], now), TokenProver(keys[1], keys[0], now)]
            yield JWTVerifier(provers[0], provers[-1], tuple(one for one in key_sets if one), now)


def _warn_of_short_secret(options: TokenOptions) -> None:
    """Warn of a weak secret. It is accepted, so that back ends that use it keep working."""
    if 0 < len(options.hmac_secret_key.encode()) < HMAC_SAFE_LENGTH:
        log.warning("HMAC secret is short and may be guessed", safe_bytes=HMAC_SAFE_LENGTH)
