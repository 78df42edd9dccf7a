"""Blocked users and revoked tokens: their connections are refused, and ended if already open.

Rule: the denials in force are in this process's memory, so a connect or a refresh costs two
dictionary look-ups and no wait. A change has three steps: the denial is saved, then it is in force,
then the connections that it refuses are ended. No client can connect between the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.access.grants import ConnectionGrant, Denial, SubscriptionGrant
from repeater.causes import Cause, Why
from repeater.clients.questions import encoded
from repeater.errors import (
    FORCE_DISCONNECT,
    INVALID_TOKEN,
    SERVER_UNSUBSCRIBE,
    BrokerError,
    Disconnect,
    ErrorCode,
    ReplyError,
)
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.access.denial_store import DenialStore
    from repeater.brokers.control import Member
    from repeater.clients.client import Client
    from repeater.clients.questions import Questions
    from repeater.clients.registry import Registry

_log = get_logger("denials")

_BLOCKED: Final = Why(Cause.DENIAL, "the user is blocked", "lift it by unblock_user")
_REVOKED: Final = Why(Cause.DENIAL, "the token is revoked", "give the user a new one")

_SWEEP_INTERVAL: Final = 60.0  # seconds between two searches for expired denials
_CLIENTS_PER_TURN: Final = 1_000
_REMEMBERED: Final = 100  # changes whose ends are still known, for the node that asks after one
_METHOD: Final = "ended_by_denial"


def why_denied(refusal: Disconnect) -> Why:
    """Why `Denials.refusal` refuses."""
    return _BLOCKED if refusal is FORCE_DISCONNECT else _REVOKED


class Ended(msgspec.Struct, frozen=True):
    """What a denial has ended."""

    clients: int = 0
    subscriptions: int = 0
    """Of clients that stay connected."""


_NOTHING_ENDED: Final = Ended()


class DenialChange(msgspec.Struct, frozen=True):
    """What a change of the denials has done."""

    changed: bool
    """Whether another denial is in force than before, or none in place of one."""
    ended: Ended = _NOTHING_ENDED
    """On all nodes that answer in time."""


class Denials:
    """The denials in force on a node. Lives inside the node, whose nursery runs and ends `run`."""

    def __init__(
        self,
        registry: Registry,
        store: DenialStore,
        limit: Callable[[], int],
        now: Callable[[], float],
        questions: Questions,
    ) -> None:
        """Take `limit` for the number of denials allowed, and `now` for Unix seconds.

        `questions` asks the other nodes what a denial has ended there.
        """
        self._registry = registry
        self._store = store
        self._limit = limit
        self._now = now
        self._denials: dict[tuple[str, str], Denial] = {}
        self._changing = trio.Lock()
        self._ended: dict[tuple[str, str], tuple[Denial, Ended]] = {}
        """What the last denials have ended here, by their keys; the oldest are forgotten."""
        self._questions = questions
        questions.register(_METHOD, self._tell_ended)

    def __len__(self) -> int:
        """The number of denials kept, including expired ones that are not swept yet."""
        return len(self._denials)

    def restore(self, kept: Iterable[Denial]) -> None:
        """Take over the denials that the store kept. Called once, before there are clients."""
        self._denials = {one.key: one for one in kept}

    async def run(self) -> None:
        """Apply the denials of other nodes, and forget expired ones, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._store.run, self._apply)
            while True:
                await trio.sleep(_SWEEP_INTERVAL)
                await self._sweep()

    def refusal(self, grant: ConnectionGrant) -> Disconnect | None:
        """The disconnect of a connection that is refused; None if it is accepted."""
        if not self._denials:
            return None
        if self._in_force(("user", grant.user)) is not None:
            return FORCE_DISCONNECT
        return INVALID_TOKEN if self.revoked(grant.user, grant) else None

    def revoked(self, user: str, grant: ConnectionGrant | SubscriptionGrant) -> bool:
        """Whether the token behind this grant is revoked.

        A token without an issue time counts as older than any time.
        """
        if not self._denials or not grant.by_token:
            return False
        if grant.token_id and self._in_force(("token", grant.token_id)) is not None:
            return True
        older = self._in_force(("tokens", user))
        return older is not None and grant.issued_at < older.issued_before

    def _in_force(self, key: tuple[str, str]) -> Denial | None:
        denial = self._denials.get(key)
        if denial is None or 0 < denial.expire_at <= self._now():
            return None
        return denial

    async def change(self, denial: Denial) -> DenialChange:
        """Put a denial in force, or lift it. On return the connections it refuses are ended.

        Cancelled, the denial is in force everywhere or nowhere. Who does not answer in time is
        missing in the counts only.

        Raises:
            ReplyError: there are too many denials (106).
            BrokerError: the store failed, and nothing has changed.
        """
        async with self._changing:  # so that two changes of one key are kept in their order
            self._check_room(denial)
            earlier = self._in_force(denial.key)
            denial = self._merged(denial, earlier)
            await self._store.save(denial)
            with trio.CancelScope(shield=True):  # bounded work, which must not be left half done
                await self._apply(denial)
        if denial.lifted:
            return DenialChange(earlier is not None)
        if denial == earlier:
            return DenialChange(False)  # so all that it refuses had ended before
        others = await self._questions.ask_those_there(_METHOD, denial.key)
        here = self._ended_by(denial.key)
        return DenialChange(True, _total([here, *map(_decode_ended, others)]))

    async def _tell_ended(self, _asker: Member, body: bytes) -> bytes:
        return encoded(self._ended_by(_decode_key(body)))

    def _ended_by(self, key: tuple[str, str]) -> Ended:
        return self._ended[key][1] if key in self._ended else _NOTHING_ENDED

    def _check_room(self, denial: Denial) -> None:
        if denial.lifted or denial.key in self._denials or len(self._denials) < self._limit():
            return
        self._forget_expired()
        if len(self._denials) >= self._limit():
            text = f"there are {len(self._denials)} blocked users and revoked tokens already"
            why = Why(Cause.LIMIT, text, "let them end by expire_at or ttl, or raise denial_limit")
            raise ReplyError(ErrorCode.LIMIT_EXCEEDED, why=why)

    def _merged(self, denial: Denial, earlier: Denial | None) -> Denial:
        """The denial, widened so that no token revoked by an earlier one becomes valid again.

        Example: tokens issued before noon are revoked. A second revocation, of those issued before
        11, still revokes the ones before noon.
        """
        if earlier is None or not denial.issued_before or denial.lifted:
            return denial
        forever = not (earlier.expire_at and denial.expire_at)
        return msgspec.structs.replace(
            denial,
            issued_before=max(earlier.issued_before, denial.issued_before),
            expire_at=0 if forever else max(earlier.expire_at, denial.expire_at),
        )

    async def _apply(self, denial: Denial) -> None:
        if denial.lifted:
            self._denials.pop(denial.key, None)
            self._ended.pop(denial.key, None)
            return
        self._denials[denial.key] = denial
        met = (
            self._registry.clients if denial.token_id else self._registry.users.get(denial.user, {})
        )
        self._remember(denial, await self._end(tuple(met)))

    def _remember(self, denial: Denial, ended: Ended) -> None:
        before, already = self._ended.pop(denial.key, (None, _NOTHING_ENDED))
        if before == denial:  # A store that nodes share tells a node its own changes, too.
            ended = _total([already, ended])
        self._ended[denial.key] = denial, ended
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    async def _end(self, clients: Iterable[Client]) -> Ended:
        """End clients that would be refused now; fan-out gets its turn every 1,000 clients."""
        ended, subscriptions = 0, 0
        for count, client in enumerate(clients, 1):
            refusal = self.refusal(client.grant)
            if refusal is None:
                subscriptions += self._end_subscriptions(client)
            elif client.end is None:
                client.disconnect(refusal)
                ended += 1
            if count % _CLIENTS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return Ended(ended, subscriptions)

    def _end_subscriptions(self, client: Client) -> int:
        revoked = [one for one in client.channels.values() if self.revoked(client.user, one.grant)]
        for subscription in revoked:
            client.end_subscription(subscription, SERVER_UNSUBSCRIBE)
        return len(revoked)

    async def _sweep(self) -> None:
        async with self._changing:
            if not self._forget_expired():
                return
            try:
                await self._store.sweep(int(self._now()))
            except BrokerError as error:
                _log.warning("expired denials are still kept", reason=str(error))

    def _forget_expired(self) -> bool:
        now = self._now()
        expired = [key for key, one in self._denials.items() if 0 < one.expire_at <= now]
        for key in expired:
            del self._denials[key]
        return bool(expired)


_decode_ended: Final = msgspec.msgpack.Decoder(Ended).decode
_decode_key: Final = msgspec.msgpack.Decoder(tuple[str, str]).decode


def _total(parts: Sequence[Ended]) -> Ended:
    return Ended(sum(one.clients for one in parts), sum(one.subscriptions for one in parts))
