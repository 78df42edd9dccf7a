"""Who listens to what, on this node. All sync: a change is atomic until the next await.

Knows no broker, no socket and no protocol. Listeners are kept by codec, because a publication is
encoded once for each codec that has a listener.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.client import Client
    from service.outbox import Outbox
    from service.protocol.codecs import Codec


class Channel:
    """The listeners of one channel. Lives inside the hub from its first listener to its last."""

    __slots__ = ("listeners", "name", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Codec, dict[Outbox, None]] = {}
        self.version = 0
        """Changes when a listener leaves: a fan-out that let others run looks again."""

    def add(self, codec: Codec, outbox: Outbox) -> None:
        """Let a client hear this channel from now on."""
        self.listeners.setdefault(codec, {})[outbox] = None

    def remove(self, codec: Codec, outbox: Outbox) -> None:
        """Nothing of this channel goes to this client any more."""
        group = self.listeners[codec]
        del group[outbox]
        if not group:
            del self.listeners[codec]
        self.version += 1


class Hub:
    """Every client and every channel with a listener on this node."""

    def __init__(self) -> None:
        self.clients: dict[Client, None] = {}
        self.channels: dict[str, Channel] = {}

    def add(self, client: Client) -> None:
        """Take a connection in."""
        self.clients[client] = None

    def remove(self, client: Client) -> None:
        """Forget a connection and all it listens to. Idempotent."""
        for name in tuple(client.channels):
            self.unsubscribe(client, name)
        self.clients.pop(client, None)

    def subscribe(self, client: Client, name: str) -> None:
        """Let a client hear a channel; it must not hear it already."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name)
        channel.add(client.codec, client.outbox)
        client.channels[channel.name] = channel

    def unsubscribe(self, client: Client, name: str) -> bool:
        """Stop it; False if the client did not hear that channel."""
        channel = client.channels.pop(name, None)
        if channel is None:
            return False
        channel.remove(client.codec, client.outbox)
        if not channel.listeners:
            del self.channels[name]
        return True

    @property
    def subscriptions(self) -> int:
        """How many (client, channel) pairs there are."""
        return sum(
            len(group) for channel in self.channels.values() for group in channel.listeners.values()
        )
