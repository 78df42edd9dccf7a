"""Publications and positions: the values that travel from a publisher to every subscriber.

A publication's data stays the JSON text that the publisher sent: nothing between the REST body
and the subscriber's frame decodes it again.
"""

from __future__ import annotations

import msgspec


class StreamPosition(msgspec.Struct, frozen=True):
    """A place in a channel's stream: publications are numbered 1, 2, 3... within an epoch.

    The epoch changes whenever numbering may have restarted (protocol, section 9.1).
    """

    offset: int
    epoch: str


class ClientInfo(msgspec.Struct, frozen=True):
    """Who a publication came from: the user id and the connection's id."""

    user: str
    client: str


class Publication(msgspec.Struct, frozen=True):
    """One event in one channel.

    `data` is valid UTF-8 JSON text. `offset` 0 means that the publication is not in the
    channel's history; `epoch` is set beside every other offset.
    """

    channel: str
    data: bytes
    offset: int = 0
    epoch: str = ""
    tags: dict[str, str] | None = None
    info: ClientInfo | None = None
