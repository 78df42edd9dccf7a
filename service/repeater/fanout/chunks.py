"""What fan-out gives to a group of listeners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import msgspec

from repeater.publication import Publication

if TYPE_CHECKING:
    from repeater.protocol.centrifugo.codecs import Codec


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
