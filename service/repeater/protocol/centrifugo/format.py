"""The contract of a message format: what clients say, and what they are told, as bytes.

A format knows the values of `commands` and `replies`, and one way to write them. It knows no frame,
and nothing of what separates a message from the next one: that is the codec's framing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from repeater.protocol.centrifugo.commands import Command
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.publication import Publication


class Format(Protocol):
    """One way to write messages. Stateless; all its codecs share it."""

    @property
    def binary(self) -> bool:
        """Whether messages are bytes, in both directions; else they are text in UTF-8."""

    @property
    def takes_binary(self) -> bool:
        """Whether a message can carry a binary publication. Codecs of other formats leave it out.

        Then nobody subscribes to binary channels with them; but a channel's format may change.
        """

    @property
    def pushes(self) -> bool:
        """Whether there are pushes and replies; else a client gets publications only."""

    @property
    def ping(self) -> bytes:
        """The message that asks a client whether it is still there."""

    def commands(self, message: str | bytes) -> Iterator[Command]:
        """The commands of one message, lazily: commands before an invalid one still take effect.

        Raises:
            DisconnectError: 3501 for a message that is not of this format.
        """

    def publication(self, publication: Publication) -> bytes:
        """The message that carries one publication."""

    def delta(self, publication: Publication, base: Publication | None) -> bytes:
        """As `publication`, to a subscriber that negotiated deltas (protocol, section 10).

        The data is the delta to `base`, if the publisher allows it and it is shorter; else, and
        without a base, the whole data.
        """

    def push(self, push: Push) -> bytes:
        """The message that carries one push; empty without pushes."""

    def reply(self, reply: Reply) -> bytes:
        """The message that carries one reply; empty without pushes."""
