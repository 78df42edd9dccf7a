"""Renewal of connections and subscriptions by the back end instead of by the client.

The back end is asked at the expiry, and again until it answers or the delay after the expiry is
over. Then the sweep ends the target, as it ends every expired one. Each renewal has its own task.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from repeater.clients.subscription import Subscription
from repeater.errors import EXPIRED, BrokerError, DisconnectError, ReplyError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.access.channel_rules import ChannelRules
    from repeater.access.grants import Renewal
    from repeater.backend.contract import Backend
    from repeater.backend.options import CallbackKind
    from repeater.clients.client import Client

_log = get_logger("renewals")

_PAUSE: Final = 2.0  # longest time between two questions, in seconds; the shortest is half of it


class RenewingNode(Protocol):
    """The part of a node that renewals use."""

    channels: ChannelRules

    def asks(self, kind: CallbackKind) -> Backend | None:
        """The back end, if it is to be asked this kind of question, else None."""

    def unix_time(self) -> float:
        """Unix seconds."""


class Renewals:
    """The renewals under way. Lives inside the node, whose nursery runs and ends the tasks.

    The tasks have no bound of their own: each belongs to an open connection or subscription, and
    the back end's own bound sets their pace.
    """

    def __init__(self, node: RenewingNode, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self._under_way: set[Client | Subscription] = set()

    def covers(self, target: Client | Subscription) -> bool:
        """Whether the back end renews the target, so that the client must not."""
        if isinstance(target, Subscription):
            options = self._node.channels.options(target.channel.name)
            return options.sub_refresh_proxy_enabled and bool(self._node.asks("sub_refresh"))
        return self._node.asks("refresh") is not None

    def due_at(self, target: Client | Subscription) -> bool:
        """Whether to call `begin` at the target's expiry: it is covered and not under way."""
        return target not in self._under_way and self.covers(target)

    def begin(self, client: Client, target: Client | Subscription) -> None:
        """Start to renew a client, or a subscription of that client. Check `due_at` first."""
        self._under_way.add(target)
        self._nursery.start_soon(self._renew, client, target)

    async def _renew(self, client: Client, target: Client | Subscription) -> None:
        try:
            await self._ask_until_answered(client, target)
        finally:
            self._under_way.discard(target)
        if client.end is None:
            client.expiry_changed()

    async def _ask_until_answered(self, client: Client, target: Client | Subscription) -> None:
        """Ask until there is an answer or the target has ended; the sweep ends expired ones."""
        while _is_there(client, target):
            if await self._ask(client, target):
                return
            await trio.sleep(_PAUSE * random.uniform(0.5, 1.0))

    async def _ask(self, client: Client, target: Client | Subscription) -> bool:
        """Ask once, and do as the answer says; return whether there was an answer."""
        try:
            renewal = await self._answer(client, target)
        except DisconnectError as error:
            client.disconnect(error.disconnect)
        except (BrokerError, ReplyError) as error:
            _log.debug("not renewed yet", client=client.id, reason=str(error))
            return False
        else:
            if _is_there(client, target):
                self._apply(client, target, renewal)
        return True

    async def _answer(self, client: Client, target: Client | Subscription) -> Renewal:
        if isinstance(target, Subscription):
            backend = self._node.asks("sub_refresh")
            assert backend is not None, "`covers` said so"
            return await backend.sub_refresh(client.caller(), target.channel.name)
        backend = self._node.asks("refresh")
        assert backend is not None, "`covers` said so"
        return await backend.refresh(client.caller())

    def _apply(self, client: Client, target: Client | Subscription, renewal: Renewal) -> None:
        expired = renewal.expired or 0 < renewal.expire_at <= self._node.unix_time()
        changes: dict[str, object] = {"expire_at": renewal.expire_at}
        if renewal.info is not None:
            changes["info"] = renewal.info
        if isinstance(target, Subscription):
            if expired:
                client.expire_subscription(target)
                return
            target.grant = msgspec.structs.replace(target.grant, **changes)
            target.expire_at = renewal.expire_at
        elif expired:
            client.disconnect(EXPIRED)
        else:
            if renewal.meta is not None:
                changes["meta"] = renewal.meta
            client.grant = msgspec.structs.replace(client.grant, **changes)


def _is_there(client: Client, target: Client | Subscription) -> bool:
    if client.end is not None:
        return False
    return not (isinstance(target, Subscription) and target.ended)
