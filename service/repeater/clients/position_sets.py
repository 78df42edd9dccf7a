"""The codecs that plain subscribers of several channels share, while they are in the same place.

One for each set of channels: it is the first subscriber's, and whoever comes later joins it when
their positions are equal. All sync, like the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repeater.protocol.sse.event_stream import SetCodec


class PositionSets:
    """The shared codecs of one node. Lives inside it; a codec is forgotten with its last user."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, ...], tuple[SetCodec, int]] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, channels: tuple[str, ...]) -> SetCodec | None:
        """The codec that subscribers of these channels share, if there is one."""
        found = self._sets.get(channels)
        return None if found is None else found[0]

    @contextmanager
    def use(self, channels: tuple[str, ...], codec: SetCodec) -> Iterator[None]:
        """Use a codec for as long as the block lasts; the first of its channels is shared."""
        shared, users = self._sets.get(channels, (codec, 0))
        if shared is not codec:
            yield  # Its subscriber is elsewhere than the others, and stays alone.
            return
        self._sets[channels] = (codec, users + 1)
        try:
            yield
        finally:
            _, users = self._sets.pop(channels)
            if users > 1:
                self._sets[channels] = (codec, users - 1)
