"""One listener of one channel, as far as fan-out knows it.

Fan-out knows no client: a listener is an outbox to write to, a codec to write by, and somebody to
tell when something is missing in the stream. `clients.subscription` makes more of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repeater.fanout.outbox import Outbox
    from repeater.protocol.centrifugo.codecs import Codec


class Listener:
    """Lives inside the hub from `Hub.join` or `Hub.listen` to `Hub.leave`."""

    __slots__ = ("codec", "ended", "join_leave", "outbox", "positioned")

    def __init__(self, codec: Codec, outbox: Outbox) -> None:
        self.codec = codec
        self.outbox = outbox
        self.positioned = False
        """Whether a gap in the stream must be told."""
        self.join_leave = False
        """Whether joins and leaves of others are pushed to it."""
        self.ended = False
        """Whether it listens no longer; set by the hub."""

    def lose_position(self) -> None:
        """Something is missing in the stream: have the client come back for it.

        Called by fan-out, for `positioned` listeners only. Must not await, and must not raise for
        anything that the client did.
        """
        raise NotImplementedError
