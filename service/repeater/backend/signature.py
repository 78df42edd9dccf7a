"""The signature by which a back end knows that Repeater calls.

An HMAC over the time, the kind of callback, the target of the request and the body: a callback that
somebody has read is of no use at another address, as another kind, or later.
"""

from __future__ import annotations

import hashlib
import hmac

HEADER = "X-Repeater-Signature"


def sign(secret: str, unix_time: int, kind: str, target: bytes, body: bytes) -> str:
    """The header's value: `t=<Unix seconds>,kind=<kind>,v1=<hex HMAC-SHA256>`.

    Signed are these lines, joined by line feeds: the time, the kind, the target and the body.

    Args:
        secret: The key, as UTF-8.
        unix_time: Seconds.
        kind: `connect`, `refresh`, ..., or `events`.
        target: Path and query of the request, as its request line has them.
        body: The request's body.
    """
    signed = b"\n".join((b"%d" % unix_time, kind.encode(), target, body))
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={unix_time},kind={kind},v1={digest}"
