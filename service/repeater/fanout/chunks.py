"""What fan-out gives to a group of listeners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

import msgspec

from repeater.publication import Publication

if TYPE_CHECKING:
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.turns import GiveWay

PART: Final = 16
"""Publications that a filter judges between two looks at the clock: about a millisecond."""


class Chunks(msgspec.Struct, frozen=True):
    """The bytes that each listener of a group gets, and the numbers of publications and bytes."""

    bytes: Sequence[bytes]
    publications: int
    size: int

    @classmethod
    def of(cls, codec: Codec, run: Sequence[Publication], base: Publication | None) -> Self:
        """Encode a run. It counts as all its publications, or as none if a filter leaves none."""
        chunks = codec.publications(run, base)
        return cls(chunks, len(run) if chunks else 0, sum(map(len, chunks)))

    @classmethod
    async def in_parts(cls, codec: Codec, run: Sequence[Publication], give_way: GiveWay) -> Self:
        """Encode a run for listeners with a filter, which is slow and makes no deltas."""
        parts: list[bytes] = []
        for start in range(0, len(run), PART):
            parts += codec.publications(run[start : start + PART])
            await give_way()
        chunks = [b"".join(parts)] if codec.framed and parts else parts
        return cls(chunks, len(run) if chunks else 0, sum(map(len, chunks)))
