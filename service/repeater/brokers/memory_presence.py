"""The default presence store: a map in this process's memory, which ends with the process."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from repeater.publication import ClientInfo


class MemoryPresence:
    """Implements `PresenceStore` for one process. Lives inside `open_node`."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, ClientInfo]] = {}

    async def add(self, channel: str, info: ClientInfo) -> None:
        """Note that a client is in the channel."""
        await trio.lowlevel.checkpoint()
        self._channels.setdefault(channel, {})[info.client] = info

    async def remove(self, channel: str, client: str) -> None:
        """Note that this connection is not in the channel any more. Idempotent."""
        await trio.lowlevel.checkpoint()
        members = self._channels.get(channel, {})
        members.pop(client, None)
        if not members:
            self._channels.pop(channel, None)

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """All clients in the channel, by connection id."""
        await trio.lowlevel.checkpoint()
        return dict(self._channels.get(channel, {}))

    async def count(self, channel: str) -> tuple[int, int]:
        """How many connections are in the channel, and how many different users."""
        await trio.lowlevel.checkpoint()
        members = self._channels.get(channel, {})
        return len(members), len({info.user for info in members.values()})
