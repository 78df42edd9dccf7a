"""Which channels have a listener on this node. All sync: a change is atomic until the next await.

Knows no broker, no client, no socket and no protocol. What the listeners of a channel are is in
`channel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from repeater.fanout.channel import Channel

if TYPE_CHECKING:
    from repeater.fanout.listener import Listener


class ChannelEvents(Protocol):
    """Is told which channels are heard. `backend.contract.Events` is the real one."""

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""


class Hub:
    """Every channel with a listener on this node. Lives inside the node; needs no end.

    Its counts are kept as they change, so that a snapshot of a full node costs no walk.
    """

    def __init__(self, events: ChannelEvents | None = None) -> None:
        self._events = events
        self.channels: dict[str, Channel] = {}
        self.distributed = trio.lowlevel.ParkingLot()
        """Where to wait for fan-out to come further; all are woken after each batch."""
        self.subscriptions = 0
        """How many listeners all channels have together."""

    def listen(self, name: str, listener: Listener) -> Channel:
        """Let a listener hear a channel from now on; returns the channel."""
        channel = self._occupy(name)
        channel.add(listener)
        return channel

    def join(self, name: str, listener: Listener) -> Channel:
        """Let a channel's publications gather for a listener, until `Channel.go_live`."""
        channel = self._occupy(name)
        channel.joining[listener] = []
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
        """Nothing of this channel goes to this listener any more. Called once for each."""
        listener.ended = True
        self.subscriptions -= 1
        channel.remove(listener)
        if channel.empty:
            del self.channels[channel.name]
            if self._events is not None:
                self._events.channel_vacated(channel.name)
