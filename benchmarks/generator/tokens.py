"""Connection tokens, signed as an application's back end signs them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

_HEAD = {"alg": "HS256", "typ": "JWT"}


def token(secret: str, user: str) -> str:
    """Return a token without expiry, which names this user."""
    body = f"{_part(_HEAD)}.{_part({'sub': user})}"
    signature = hmac.digest(secret.encode(), body.encode(), hashlib.sha256)
    return f"{body}.{_text(signature)}"


def _part(value: Mapping[str, str]) -> str:
    return _text(json.dumps(value).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
