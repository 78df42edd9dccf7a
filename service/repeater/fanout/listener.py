"""One listener of one channel, as far as fan-out knows it.

Fan-out knows no client: a listener is an outbox to write to, a codec to encode with, and a method
to call when publications are missing in the stream. `clients.subscription` extends it.
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
        """Whether this listener must be told of a gap in the stream."""
        self.join_leave = False
        """Whether joins and leaves of other clients are pushed to this listener."""
        self.ended = False
        """Whether it has left the channel; set by the hub."""

    def lose_position(self) -> None:
        """Make the client come back, because publications are missing in its stream.

        Called by fan-out, for `positioned` listeners only. Must not await, and must not raise for
        anything that the client did.
        """
        raise NotImplementedError
