"""What a tags filter leaves of a recovery. A filter judges each publication once, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from repeater.fanout.recovery import Joined, Size
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.publication import Publication

if TYPE_CHECKING:
    from repeater.clients.contract import ClientNode


def filtered(joined: Joined, tags: TagsFilter | None, size: Size) -> Joined:
    """The same without the publications that the subscriber's filter leaves out."""
    if tags is None:
        return joined
    wanted = [publication for publication in joined.publications if size(publication)]
    return msgspec.structs.replace(joined, publications=wanted)


async def known_sizes(node: ClientNode, history: Sequence[Publication], size: Size) -> Size:
    """The same sizes, of which those of the history are known already.

    A filter judges each publication for its size, some 50 us each, so this gives way; publications
    go on gathering meanwhile.
    """
    known: dict[int, int] = {}
    for publication in history:
        known[publication.offset] = size(publication)
        await node.turns.give_way()

    def known_size(publication: Publication) -> int:
        found = known.get(publication.offset)
        return size(publication) if found is None else found

    return known_size
