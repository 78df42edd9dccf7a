"""How many filter nodes each channel evaluates for one publication. All sync."""

from __future__ import annotations

from collections import Counter

from repeater.protocol.centrifugo.filters import TagsFilter, nodes_of


class FilterCounts:
    """Counts the different filters of each channel. Lives inside the hub, which changes it."""

    def __init__(self) -> None:
        self._nodes: Counter[str] = Counter()
        self._uses: Counter[tuple[str, TagsFilter]] = Counter()

    def __len__(self) -> int:
        """The number of channels that have filters."""
        return len(self._nodes)

    def nodes_with(self, channel: str, tags: TagsFilter) -> int:
        """The nodes of a channel's different filters, if one more listener has this filter."""
        known = (channel, tags) in self._uses
        return self._nodes[channel] + (0 if known else nodes_of(tags))

    def add(self, channel: str, tags: TagsFilter) -> None:
        """Count one more listener with this filter."""
        if (channel, tags) not in self._uses:
            self._nodes[channel] += nodes_of(tags)
        self._uses[channel, tags] += 1

    def discard(self, channel: str, tags: TagsFilter) -> None:
        """Count one listener less, which was counted before."""
        self._uses[channel, tags] -= 1
        if self._uses[channel, tags]:
            return
        del self._uses[channel, tags]
        self._nodes[channel] -= nodes_of(tags)
        if not self._nodes[channel]:
            del self._nodes[channel]
