"""Connections and subscriptions that expire and that the back end renews, not the client.

Asked for when the moment comes, and again until there is an answer or the delay after expiry is
over, when the sweep ends them like any other. One task for each that is being renewed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.errors import EXPIRED, BrokerError, DisconnectError, ReplyError
from repeater.fanout.hub import Subscription
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.access.grants import Renewal
    from repeater.clients.client import Client
    from repeater.node import Node

_log = get_logger("renewing")

_PAUSE: Final = 2.0  # seconds between two questions at most; half of it at least


class Renewals:
    """What is being renewed. Lives inside the node, whose nursery runs and ends the tasks.

    They have no bound of their own: each is for a connection or subscription that is there, and
    the back end's own bound sets their pace.
    """

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self._under_way: set[Client | Subscription] = set()

    def covers(self, target: Client | Subscription) -> bool:
        """Whether the back end renews it, and the client must not."""
        if isinstance(target, Subscription):
            options = self._node.channels.options(target.channel.name)
            return options.sub_refresh_proxy_enabled and bool(self._node.asks("sub_refresh"))
        return self._node.asks("refresh") is not None

    def due_at(self, target: Client | Subscription) -> bool:
        """Whether something is to be done about it at its very expiry, and not a delay later."""
        return target not in self._under_way and self.covers(target)

    def begin(self, target: Client | Subscription) -> None:
        """Have it renewed. Whoever is asked `due_at` first does so once."""
        self._under_way.add(target)
        self._nursery.start_soon(self._renew, target)

    async def _renew(self, target: Client | Subscription) -> None:
        try:
            await self._ask_until_answered(target)
        finally:
            self._under_way.discard(target)
        client = _client_of(target)
        if client.end is None:
            client.expiry_changed()

    async def _ask_until_answered(self, target: Client | Subscription) -> None:
        """Returns also when it has ended; the sweep sees to that."""
        while _is_there(target):
            if await self._ask(target):
                return
            await trio.sleep(_PAUSE * random.uniform(0.5, 1.0))

    async def _ask(self, target: Client | Subscription) -> bool:
        """Ask once, and do as the answer says; whether there was one."""
        client = _client_of(target)
        try:
            renewal = await self._answer(target)
        except DisconnectError as error:
            client.disconnect(error.disconnect)
        except (BrokerError, ReplyError) as error:
            _log.debug("not renewed yet", client=client.id, reason=str(error))
            return False
        else:
            if _is_there(target):
                self._apply(target, renewal)
        return True

    async def _answer(self, target: Client | Subscription) -> Renewal:
        backend = self._node.backend
        assert backend is not None, "`covers` said so"
        if isinstance(target, Subscription):
            return await backend.sub_refresh(target.client.caller(), target.channel.name)
        return await backend.refresh(target.caller())

    def _apply(self, target: Client | Subscription, renewal: Renewal) -> None:
        expired = renewal.expired or 0 < renewal.expire_at <= self._node.unix_time()
        changes: dict[str, object] = {"expire_at": renewal.expire_at}
        if renewal.info is not None:
            changes["info"] = renewal.info
        if isinstance(target, Subscription):
            if expired:
                target.client.expire_subscription(target)
                return
            target.grant = msgspec.structs.replace(target.grant, **changes)
            target.expire_at = renewal.expire_at
        elif expired:
            target.disconnect(EXPIRED)
        else:
            if renewal.meta is not None:
                changes["meta"] = renewal.meta
            target.grant = msgspec.structs.replace(target.grant, **changes)


def _client_of(target: Client | Subscription) -> Client:
    return target.client if isinstance(target, Subscription) else target


def _is_there(target: Client | Subscription) -> bool:
    client = _client_of(target)
    if client.end is not None or not isinstance(target, Subscription):
        return client.end is None
    return client.channels.get(target.channel.name) is target
