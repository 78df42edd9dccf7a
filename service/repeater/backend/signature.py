"""The signature by which a back end knows that Repeater calls: an HMAC over time and body."""

from __future__ import annotations

import hashlib
import hmac

HEADER = "X-Repeater-Signature"


def sign(secret: str, unix_time: int, body: bytes) -> str:
    """The header's value: `t=<Unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`."""
    signed = b"%d." % unix_time + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={unix_time},v1={digest}"
