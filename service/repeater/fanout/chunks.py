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
"""Publications that a filter judges between two looks at the clock: about a millisecond. Protobuf
takes 1 to 2 us for each."""

_PART_BYTES: Final = 16_384  # of data that are compressed between two looks: 0.1 to 0.3 ms


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
    async def in_parts(
        cls,
        codec: Codec,
        run: Sequence[Publication],
        base: Publication | None,
        give_way: GiveWay,
    ) -> Self:
        """Encode a run by a slow codec, as `of` does: it filters, compresses or is Protobuf."""
        parts: list[bytes] = []
        start = 0
        while start < len(run):
            end = _part_end(run, start)
            parts += codec.publications(run[start:end], base)
            codec, base, start = codec.following, run[end - 1], end
            await give_way()
        chunks = [b"".join(parts)] if codec.framed and parts else parts
        return cls(chunks, len(run) if chunks else 0, sum(map(len, chunks)))


def _part_end(run: Sequence[Publication], start: int) -> int:
    """Where the part of a run ends that begins here: one publication, or few and short ones."""
    last, size = min(start + PART, len(run)), 0
    for end in range(start, last):
        size += len(run[end].data)
        if size > _PART_BYTES and end > start:
            return end
    return last
