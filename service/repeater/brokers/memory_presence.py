"""The default presence store: a map in this process's memory, which ends with the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from repeater.publication import ClientInfo
from repeater.tally import subtract


class MemoryPresence:
    """Implements `PresenceStore` for one process. Lives inside `open_node`."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, ClientInfo]] = {}
        # How many clients each user has in a channel, so that a count needs no walk over them.
        self._users: dict[str, Counter[str]] = {}

    def add(self, channel: str, info: ClientInfo) -> None:
        """Note that a client is in the channel."""
        members = self._channels.setdefault(channel, {})
        users = self._users.setdefault(channel, Counter())
        users[info.user] += 1
        before = members.get(info.client)
        members[info.client] = info
        if before is not None:
            subtract(users, before.user)

    def remove(self, channel: str, client: str) -> None:
        """Note that this connection is not in the channel any more. Idempotent."""
        members = self._channels.get(channel, {})
        info = members.pop(client, None)
        if info is not None:
            subtract(self._users[channel], info.user)
        if not members:
            self._channels.pop(channel, None)
            self._users.pop(channel, None)

    def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """All clients in the channel, by connection id."""
        return dict(self._channels.get(channel, {}))

    def count(self, channel: str) -> tuple[int, int]:
        """How many connections are in the channel, and how many different users."""
        return len(self._channels.get(channel, {})), len(self._users.get(channel, {}))
