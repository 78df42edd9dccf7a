"""The codecs that plain subscribers of several channels share, while their positions are equal.

Each set of channels has one shared codec for each way of writing events, which the first subscriber
made. A later subscriber uses it if its own positions are equal to the codec's. All sync, like the
hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repeater.protocol.event_codec import EventCodec

Set = tuple[EventCodec, tuple[str, ...]]
"""The codec without ids that writes alike, and the channels' sorted names."""


class PositionSets:
    """The shared codecs of one node. Lives inside it; a codec is forgotten with its last user."""

    def __init__(self) -> None:
        self._sets: dict[Set, tuple[EventCodec, int]] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, channels: Set) -> EventCodec | None:
        """The codec that subscribers of these channels share, or None."""
        found = self._sets.get(channels)
        return None if found is None else found[0]

    @contextmanager
    def use(self, channels: Set, codec: EventCodec) -> Iterator[None]:
        """Use a codec while the block lasts. The first codec of a set of channels is shared."""
        shared, users = self._sets.get(channels, (codec, 0))
        if shared is not codec:
            yield  # The subscriber's positions differ from the shared ones, so it stays alone.
            return
        self._sets[channels] = (codec, users + 1)
        try:
            yield
        finally:
            _, users = self._sets.pop(channels)
            if users > 1:
                self._sets[channels] = (codec, users - 1)
