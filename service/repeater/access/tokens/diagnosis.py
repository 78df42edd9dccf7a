"""Why no key proved a token: mistakes that many make, each shown by proving the token another way.

Only a refused token comes here. The words name settings and algorithms; they never hold a key, nor
more of a token than the names in its header.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from repeater.access.grants import NO_KEY, TokenInvalidError
from repeater.access.tokens.jwks import KeySet
from repeater.access.tokens.keys import (
    HMAC_SAFE_LENGTH,
    KEY_SETTINGS,
    PUBLIC_KEY_ALGORITHMS,
    Key,
    KeyRing,
    hmac_keys,
)
from repeater.access.tokens.options import TokenOptions

_SHOWN: Final = 40  # characters of a stranger's text
_LONGEST: Final = 100  # characters of an audience or an issuer
_MOST: Final = 3  # audiences that are shown
_QUOTES: Final = "\"'"


class Parts(msgspec.Struct, frozen=True):
    """The parts of a token; nothing of them is proven yet."""

    algorithm: str
    kid: str | None
    payload: str
    """In base64url: to decode what nobody has proven would be a stranger's to choose."""
    signed: bytes
    signature: bytes


class Keys(msgspec.Struct, frozen=True):
    """What one kind of token is proven with, and the table of the configuration that says so."""

    table: str
    options: TokenOptions
    ring: KeyRing
    key_set: KeySet | None = None


def not_a_token(text: str) -> TokenInvalidError:
    """Why a text is not a token: what libraries and copying leave around one."""
    if text[:7].lower() == "bearer ":
        return TokenInvalidError("not a token alone: it begins with 'Bearer'", "leave that out")
    if text[:2] in ("b'", 'b"'):
        return TokenInvalidError("not a token: it is bytes, printed by Python", "decode() it")
    if text[:1] in ("'", '"'):
        return TokenInvalidError("not a token alone: it is in quotes", "leave them out")
    if text != text.strip():
        return TokenInvalidError("not a token alone: white space is around it", "strip it")
    return TokenInvalidError(
        "not a token: a JWT has three parts in base64url, with dots between them",
        "send the text that a JWT library makes",
    )


def unproven(parts: Parts, keys: Keys, other: Keys | None) -> TokenInvalidError:
    """Why no key of ours proved a token.

    Args:
        parts: The token.
        keys: What it was to be proven with.
        other: What the other kind of tokens is proven with, if that is something else.
    """
    algorithm = parts.algorithm[:_SHOWN]
    if not keys.options.enabled:
        return TokenInvalidError(*NO_KEY)
    if algorithm.lower() == "none":
        return TokenInvalidError("no key for its algorithm: it is not signed", "sign it")
    if other is not None and other.ring.proves(algorithm, parts.signed, parts.signature):
        text = f"wrong signature: it is signed with a key of [{other.table}]"
        return TokenInvalidError(text, f"sign tokens of this kind with a key of [{keys.table}]")
    published = keys.key_set is not None and algorithm in PUBLIC_KEY_ALGORITHMS
    if keys.ring.allows(algorithm):
        return _wrong_signature(parts, keys, published=published)
    if published:
        return _not_by_issuer(parts, keys)
    return _no_key(algorithm, keys)


def _wrong_signature(parts: Parts, keys: Keys, *, published: bool) -> TokenInvalidError:
    setting = f"{keys.table}.{KEY_SETTINGS.get(parts.algorithm[:2], 'jwks_url')}"
    if published:
        setting += f", or of {keys.table}.jwks_url"
    if parts.algorithm[:2] != "HS":
        return TokenInvalidError("wrong signature", f"sign with the private key of {setting}")
    for what, secret in _variants(keys.options):
        if any(
            key.proves(parts.signed, parts.signature)
            for key in _hmac_keys(secret)
            if key.algorithm == parts.algorithm
        ):
            text = f"wrong signature: it is signed with {what.format(setting=setting)}"
            return TokenInvalidError(text, "have the same secret on both sides, byte for byte")
    mend = f"sign with the secret of {setting}, byte for byte"
    if len(keys.options.hmac_secret_key.encode()) < HMAC_SAFE_LENGTH:
        mend += f"; that one is short, some libraries refuse it: take {HMAC_SAFE_LENGTH} bytes"
    return TokenInvalidError("wrong signature", mend)


def _variants(options: TokenOptions) -> Iterator[tuple[str, str | bytes]]:
    """What is made of a secret by mistake, on the one side or the other."""
    secret = options.hmac_secret_key
    if secret != secret.strip():
        yield "{setting} without the white space around it", secret.strip()
    yield "{setting} and a line break", secret + "\n"
    if secret[:1] in _QUOTES and secret[:1] == secret[-1:]:
        yield "{setting} without the quotes around it", secret[1:-1]
    text = secret.strip()
    padded = text + "=" * (-len(text) % 4)
    for base, decode in (
        ("base64", base64.b64decode),
        ("base64", base64.urlsafe_b64decode),
        ("hex", bytes.fromhex),
    ):
        with suppress(ValueError):
            yield f"{{setting}} decoded from {base}", decode(text if base == "hex" else padded)
    if options.hmac_previous_secret_key:
        what = "the previous secret, whose time is over (hmac_previous_secret_key_valid_until)"
        yield what, options.hmac_previous_secret_key


def _hmac_keys(secret: str | bytes) -> list[Key]:
    try:
        return hmac_keys(secret) if secret else []
    except ValueError:
        return []


def _not_by_issuer(parts: Parts, keys: Keys) -> TokenInvalidError:
    """Why the issuer's published keys did not prove a token."""
    assert keys.key_set is not None
    where = f"the keys of {keys.table}.jwks_url"
    if not parts.kid:
        return TokenInvalidError("its header has no kid", f"{where} are found by their kid")
    kid = parts.kid[:_SHOWN]
    found = keys.key_set.known(parts.kid)
    if not found:
        return TokenInvalidError(
            f"no key for it: {where} have none with its kid {kid!r}",
            "have the issuer publish it, or correct the address",
        )
    allowed = _listed(key.algorithm for key in found)
    if parts.algorithm[:_SHOWN] not in {key.algorithm for key in found}:
        return TokenInvalidError(
            f"no key for its algorithm: the issuer's key {kid!r} is for {allowed}, and the token "
            f"is signed with {parts.algorithm[:_SHOWN]!r}",
            "sign with the key's algorithm",
        )
    return TokenInvalidError(
        f"wrong signature: the issuer's key {kid!r} did not make it", f"compare {where}"
    )


def _no_key(algorithm: str, keys: Keys) -> TokenInvalidError:
    names = [_listed(keys.ring.algorithms)] if keys.ring.algorithms else []
    if keys.key_set is not None:
        names.append("what the issuer publishes (jwks_url)")
    setting = KEY_SETTINGS.get(algorithm[:2])
    mend = f"sign with one of these, or set {keys.table}.{setting}" if setting else "sign with one"
    return TokenInvalidError(
        f"no key for its algorithm: it is signed with {algorithm!r}, and [{keys.table}] has keys "
        f"for {' and '.join(names)}",
        mend,
    )


def _listed(algorithms: Iterable[str]) -> str:
    return ", ".join(sorted(set(algorithms)))


def another(claim: str, found: Sequence[str], keys: Keys, setting: str) -> TokenInvalidError:
    """Why a token is for somebody else, or from somebody else: `aud` or `iss` is not as set."""
    wanted = getattr(keys.options, setting)
    if not wanted:
        setting += "_regex"
        wanted = getattr(keys.options, setting).pattern
    noun = "audience" if claim == "aud" else "issuer"
    has = ", ".join(repr(one[:_LONGEST]) for one in found[:_MOST])
    its = f"its {claim} is {has}" if has else f"it has no claim {claim}"
    return TokenInvalidError(
        f"another {noun}: {its}, and {keys.table}.{setting} is {wanted[:_LONGEST]!r}",
        f"write that as {claim} into the token, or change the setting",
    )
