"""Renewal of connections and subscriptions by the back end instead of by the client.

The back end is asked at the expiry. If the question fails, the target stays, and the back end is
asked again after pauses that grow, until it answers or `expiry_grace` is over: an outage of the
back end must not send everybody away. Then the sweep ends the target, as it ends every expired one.
Each renewal has its own task.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from repeater.causes import Cause, Why
from repeater.clients.subscription import Subscription
from repeater.errors import EXPIRED, SERVER_ERROR, BrokerError, DisconnectError, ReplyError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.access.grants import Renewal
    from repeater.backend.contract import Backend
    from repeater.backend.options import CallbackKind
    from repeater.clients.client import Client
    from repeater.clients.presence import Attendance
    from repeater.clients.refusals import Refusals
    from repeater.failures import Failures
    from repeater.options import NodeOptions

_log = get_logger("renewals")

_ENDED: Final = Why(Cause.APPLICATION, "the back end answered that this has expired")
_NO_EXPIRY: Final = Why(
    Cause.CALLBACK,
    "the refresh callback: the answer has no expire_at, so the connection has expired",
    'answer {"result": {"expire_at": 1700000600}}, in Unix seconds',
)
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 60.0
_SPREAD: Final = 1.1  # the longest pause over the shortest, so that clients do not ask in step


class RenewingNode(Protocol):
    """The part of a node that renewals use."""

    attendance: Attendance
    refusals: Refusals
    failures: Failures

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
        """Whether the back end renews the target, so that the client must not.

        Never raises: sweeps ask this about subscriptions whose channel a reload has removed.
        """
        if isinstance(target, Subscription):
            return target.renewed and self._node.asks("sub_refresh") is not None
        # The back end is not asked about plain subscribers: they end when their token does.
        return target.codec.pushes and self._node.asks("refresh") is not None

    def due_at(self, target: Client | Subscription) -> bool:
        """Whether to call `begin` at the target's expiry: it is covered and not under way."""
        return target not in self._under_way and self.covers(target)

    def acts_at(self, client: Client, target: Client | Subscription, options: NodeOptions) -> float:
        """The Unix time at which to act on the expiry of a client, or of its subscription.

        The back end is asked at the expiry itself. The target ends at that time plus a delay in
        which it can still be renewed: by the back end, or by the client. A plain subscriber has no
        command to refresh with, so it ends when its token does.
        """
        if self.covers(target):
            grace = options.expiry_grace if target in self._under_way else 0
            return target.expire_at + grace
        return target.expire_at + (options.expired_close_delay if client.codec.pushes else 0)

    def begin(self, client: Client, target: Client | Subscription) -> None:
        """Start to renew a client, or a subscription of that client. Check `due_at` first."""
        self._under_way.add(target)
        self._nursery.start_soon(self._renew, client, target)

    async def _renew(self, client: Client, target: Client | Subscription) -> None:
        changed: tuple[Subscription, ...] = ()
        try:
            changed = await self._ask_until_answered(client, target)
        except Exception as error:  # the boundary of this one client, as the read loop has one
            self._node.failures.note("renewal", error)
            client.cut(SERVER_ERROR)
        finally:
            self._under_way.discard(target)
        if client.end is None:
            client.expiry_changed()
            await self._node.attendance.renew(changed)

    async def _ask_until_answered(
        self, client: Client, target: Client | Subscription
    ) -> tuple[Subscription, ...]:
        """Ask until there is an answer, or the target has ended, or the server API renewed it.

        Returns the subscriptions whose info has changed. The sweep ends what is not renewed.
        """
        pause = _FIRST_PAUSE
        while self._has_expired(client, target):
            try:
                renewal = await self._answer(client, target)
            except DisconnectError as error:
                self._node.refusals.end(client, error.disconnect, error.why, *_what(target))
                break
            except (BrokerError, ReplyError) as error:
                _log.debug("not renewed yet", client=client.id, reason=str(error))
            else:
                return self._apply(client, target, renewal) if _is_there(client, target) else ()
            await trio.sleep(min(pause * random.uniform(1.0, _SPREAD), _LONGEST_PAUSE))
            pause *= 2
        return ()

    def _has_expired(self, client: Client, target: Client | Subscription) -> bool:
        return _is_there(client, target) and 0 < target.expire_at <= self._node.unix_time()

    async def _answer(self, client: Client, target: Client | Subscription) -> Renewal:
        if isinstance(target, Subscription):
            backend = self._node.asks("sub_refresh")
            assert backend is not None, "`covers` said so"
            return await backend.sub_refresh(client.asking(), target.channel.name)
        backend = self._node.asks("refresh")
        assert backend is not None, "`covers` said so"
        return await backend.refresh(client.asking())

    def _apply(
        self, client: Client, target: Client | Subscription, renewal: Renewal
    ) -> tuple[Subscription, ...]:
        """Do as the answer says; return the subscriptions whose info has changed."""
        expired = renewal.expired or 0 < renewal.expire_at <= self._node.unix_time()
        changes: dict[str, object] = {"expire_at": renewal.expire_at}
        if renewal.info is not None:
            changes["info"] = renewal.info
        if isinstance(target, Subscription):
            if expired:
                self._node.refusals.note(_ENDED, "sub_refresh", client, channel=target.channel.name)
                client.expire_subscription(target)
                return ()
            old, target.grant = target.grant, msgspec.structs.replace(target.grant, **changes)
            target.expire_at = renewal.expire_at
            return (target,) if old.info != target.grant.info else ()
        if expired or not renewal.expire_at:
            # A connection that never expires is never asked about again, and this is hardly what
            # a back end wants that forgot the field.
            why = _ENDED if expired else _NO_EXPIRY
            self._node.refusals.end(client, EXPIRED, why, "refresh")
            return ()
        if renewal.meta is not None:
            changes["meta"] = renewal.meta
        before, client.grant = client.grant, msgspec.structs.replace(client.grant, **changes)
        return tuple(client.channels.values()) if before.info != client.grant.info else ()


def _what(target: Client | Subscription) -> tuple[str, str]:
    """The name of the question about a target, and its channel, for the log."""
    if isinstance(target, Subscription):
        return "sub_refresh", target.channel.name
    return "refresh", ""


def _is_there(client: Client, target: Client | Subscription) -> bool:
    if client.end is not None:
        return False
    return not (isinstance(target, Subscription) and target.ended)
