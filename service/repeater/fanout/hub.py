"""Which channels have a listener on this node. All sync: a change is atomic until the next await.

Knows no broker, no client, no socket and no protocol. The module `channel` keeps the listeners of
one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from repeater.fanout.channel import Channel
from repeater.fanout.filters import FilterCounts
from repeater.fanout.gathered import Gathered
from repeater.fanout.recovery import Room

if TYPE_CHECKING:
    from repeater.fanout.listener import Listener


class ChannelEvents(Protocol):
    """Learns which channels have listeners. `backend.contract.Events` is the real one."""

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""


class Hub:
    """Every channel with a listener on this node. Lives inside the node; needs no closing.

    It updates its counts with each change, so that a snapshot needs no loop over all listeners.
    """

    def __init__(
        self,
        events: ChannelEvents | None = None,
        release: Callable[[str], None] = lambda _channel: None,
    ) -> None:
        """Tell `events` of channels, and `release` of those whose last listener has gone."""
        self._events = events
        self._release = release
        self.channels: dict[str, Channel] = {}
        self.distributed = trio.lowlevel.ParkingLot()
        """Tasks wait here until fan-out has come further; each batch wakes all of them."""
        self.filters = FilterCounts()
        self.subscriptions = 0
        """The number of listeners of all channels together."""

    def listen(self, name: str, listener: Listener) -> Channel:
        """Let a listener hear a channel from now on; returns the channel."""
        channel = self._occupy(name)
        channel.add(listener)
        return channel

    def join(self, name: str, listener: Listener, room: Room | None = None) -> Channel:
        """Let a channel's publications gather for a listener, until `Channel.go_live`.

        Args:
            name: The channel.
            listener: The listener.
            room: Bounds what gathers; shared by the listeners of one answer. None for no bound.
        """
        channel = self._occupy(name)
        if listener.codec.tags is not None:
            self.filters.add(name, listener.codec.tags)
        channel.joining[listener] = Gathered(room or Room())
        return channel

    def _occupy(self, name: str) -> Channel:
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name)
            if self._events is not None:
                self._events.channel_occupied(name)
        self.subscriptions += 1
        return channel

    def leave(self, channel: Channel, listener: Listener) -> None:
        """Let a listener hear nothing of this channel any more. Called once for each listener."""
        listener.ended = True
        self.subscriptions -= 1
        channel.remove(listener)
        if listener.codec.tags is not None:
            self.filters.discard(channel.name, listener.codec.tags)
        if channel.empty:
            del self.channels[channel.name]
            self._release(channel.name)
            if self._events is not None:
                self._events.channel_vacated(channel.name)
