"""The keys of the conversations' tokens; connection tokens have fixed ones, others a key set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.differential.settings import SECRET
from tests.signing import OTHER_SECRET, jwk_of, key_for, pem_of, sign

FIXED: Final = ("HS256", "HS512", "RS256", "RS512", "ES256")
"""What connection tokens are signed with."""
PUBLISHED: Final = ("RS256", "ES256", "ES384", "EdDSA")
"""What subscription tokens are signed with; the key set names each by its algorithm."""


def rsa_pem() -> str:
    return pem_of(key_for("RS256"))


def ecdsa_pem() -> str:
    return pem_of(_ec())


def _ec() -> Any:
    return _keys().setdefault("fixed", key_for("ES256"))


def _keys(held: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006  # made once
    return held


def _published(name: str) -> Any:
    return _keys().setdefault(name, key_for(name, "published"))


def key_set() -> Mapping[str, Any]:
    """What the issuer publishes."""
    return {"keys": [jwk_of(_published(one), one, alg=one, use="sig") for one in PUBLISHED]}


def token(claims: Mapping[str, Any], key: str) -> str:
    """A token; its key is an algorithm, `jwks:` before one that is published, or `wrong`."""
    if key == "wrong":
        return sign(claims, OTHER_SECRET)
    if key.startswith("jwks:"):
        name = key.removeprefix("jwks:")
        return sign(claims, _published(name), name, kid=name)
    if key.startswith("ES"):
        return sign(claims, _ec(), key)
    return sign(claims, SECRET if key.startswith("HS") else key_for("RS256"), key)
