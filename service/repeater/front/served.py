"""What a handed-over connection asks of the protocol that it serves."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = tuple[Literal["idle", "head", "busy"], int]
"""What a connection waits for: a request, the rest of a head (the number says which), or the
answers under way."""


class Served(Protocol):
    """The protocol of a connection, as its `Link` sees it: `HTTP1` or `HTTP2`."""

    says_goodbye: bool
    """Whether `goodbye` tells the peer that no request is taken any more: nobody has to wait."""

    step: int
    """Bytes that are fed at once: about the readers' share of a pass, whatever the bytes are."""

    @property
    def full(self) -> bool:
        """Whether a request is carried out behind which nothing may be fed."""

    @property
    def discards(self) -> bool:
        """Whether bytes that wait are never going to be fed."""

    @property
    def resumable(self) -> bool:
        """Whether `resume` is due."""

    @property
    def stage(self) -> Stage:
        """What the connection waits for."""

    @property
    def incomplete(self) -> bool:
        """Whether a request's body is not whole yet."""

    async def initiate(self) -> None:
        """Begin."""

    async def feed(self, data: bytes) -> None:
        """Take bytes in, and carry out what they say."""

    async def resume(self) -> None:
        """Go on with bytes that were fed already."""

    async def half_close(self) -> bool:
        """The peer has sent its last byte; return whether no answer is owed to it."""

    async def close(self) -> None:
        """Tell all requests under way that their peer has gone."""

    async def goodbye(self) -> None:
        """Say that no request is taken any more."""

    async def drop_bodies(self) -> None:
        """End the requests whose bodies did not come in time."""
