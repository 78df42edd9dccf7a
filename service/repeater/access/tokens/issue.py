"""Makes tokens, for the command line and for tests; back ends make theirs with any library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jwt
from jwt.warnings import InsecureKeyLengthWarning


def issue_token(claims: Mapping[str, Any], hmac_secret_key: str) -> str:
    """A token with these claims, signed with HS256.

    A short secret is accepted here; callers that want to warn compare it with `HMAC_SAFE_LENGTH`.

    Raises:
        ValueError: the secret is empty, or is a public key.
    """
    if not hmac_secret_key:
        raise ValueError("the secret must not be empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        try:
            return jwt.encode(dict(claims), hmac_secret_key, algorithm="HS256")
        except jwt.InvalidKeyError:
            raise ValueError("an HMAC secret must not be a public key") from None
