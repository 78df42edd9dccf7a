"""The presence store of a worker: its supervisor's, over the link.

The supervisor removes a worker's entries when the worker ends without having done so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.workers.up import AddMember, CountMembers, ReadMembers, RemoveMember
from repeater.workers.values import info_row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.brokers.receipts import Receipt
    from repeater.publication import ClientInfo
    from repeater.workers.calls import Calls


class WorkerPresence:
    """Implements `PresenceStore` over the link. Made by `open_worker_link`.

    All calls are carried out in their order, over all channels.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def add(self, channel: str, info: ClientInfo) -> Receipt[None]:
        """Note that a client is in the channel."""
        return self._calls.ask(AddMember, channel, info_row(info))

    def remove(self, channel: str, client: str) -> Receipt[None]:
        """Note that this connection is not in the channel any more."""
        return self._calls.ask(RemoveMember, channel, client)

    def members(self, channel: str) -> Receipt[Mapping[str, ClientInfo]]:
        """All clients in the channel, of all workers."""
        return self._calls.ask(ReadMembers, channel)

    def count(self, channel: str) -> Receipt[tuple[int, int]]:
        """How many connections and users are in the channel, over all workers."""
        return self._calls.ask(CountMembers, channel)
