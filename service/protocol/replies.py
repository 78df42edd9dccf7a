"""What a Centrifugo client is answered: one JSON object a command, never with a raw newline.

Zero values are left out (protocol, section 2.4), except where an SDK needs them.
"""

from __future__ import annotations

import msgspec

from service.errors import ErrorCode


class ConnectResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to `connect`; `ping` is the whole seconds between pings, 0 for none."""

    client: str
    version: str
    ping: int = 0
    pong: bool = False


class Empty(msgspec.Struct, frozen=True):
    """An empty result is still there: `{}`."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Code and message always: the Python SDK raises KeyError without them."""

    code: int
    message: str
    temporary: bool = False


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reply, for the command with the same id."""

    id: int
    error: Failure | None = None
    connect: ConnectResult | None = None
    subscribe: Empty | None = None
    unsubscribe: Empty | None = None
    publish: Empty | None = None


encode_reply = msgspec.json.Encoder().encode


def failure(code: ErrorCode) -> Failure:
    """The error object of a code, as it stands in replies."""
    return Failure(int(code), code.message, code.temporary)
