"""`block_user`, `unblock_user` and `revoke_token`: refuse users and tokens.

A call takes effect at once, for open connections too. A block or revocation may end by itself, at
a time (`expire_at`, Unix seconds) or after `ttl` seconds. Without either, a block lasts until
`unblock_user` and a revocation for ever.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from repeater.access.grants import Denial
from repeater.api.refusals import missing
from repeater.causes import Cause, Why
from repeater.clients.user_connections import IN_THE_PAST
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

Name = Annotated[str, msgspec.Meta(max_length=1024)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


_NOT_ONE: Final = Why(Cause.REQUEST, "jti, uid, user: give exactly one of them")
_NO_USER: Final = Why(Cause.REQUEST, "issued_before: it goes with user only")
_TWO_ENDS: Final = Why(Cause.REQUEST, "expire_at, ttl: give at most one of them")


class _Ending(msgspec.Struct, frozen=True):
    expire_at: Whole = 0
    ttl: Whole = 0


class BlockUserBody(_Ending, frozen=True):
    """`POST /api/block_user`. The user's connections are closed with 3503."""

    user: Name = ""


class UnblockUserBody(msgspec.Struct, frozen=True):
    """`POST /api/unblock_user`. It is not an error if the user is not blocked."""

    user: Name = ""


class RevokeTokenBody(_Ending, frozen=True):
    """`POST /api/revoke_token`: one token by its `jti` (or `uid`), or the tokens of a `user`.

    A user's tokens are revoked if they were issued before `issued_before`. The default is the end
    of the current second. Connections by revoked tokens are closed with 3500, and subscriptions
    by revoked tokens are ended.
    """

    jti: Name = ""
    uid: Name = ""
    user: Name = ""
    issued_before: Whole = 0


class Denied(msgspec.Struct, frozen=True):
    """What the call has done, over all workers and nodes.

    `changed` is false if the same was refused already. `num_clients` connections were closed, and
    `num_subs` subscriptions of other connections were ended.
    """

    changed: bool
    num_clients: int
    num_subs: int


class Admitted(msgspec.Struct, frozen=True):
    """What the call has done: `changed` is false if the user was not blocked."""

    changed: bool


async def block_user(node: Node, body: BlockUserBody, budget: Budget) -> Denied:
    """Close a user's connections, and refuse new ones until the block expires or is lifted.

    Raises:
        ReplyError: the user is missing, or the time is not in the future (107); there are too
            many denials already (106).
        BrokerError: the block could not be saved, and is not in force.
    """
    if not body.user:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=missing("user"))
    return await _deny(node, Denial(user=body.user, expire_at=_end(node, body)))


async def unblock_user(node: Node, body: UnblockUserBody, budget: Budget) -> Admitted:
    """Accept a blocked user again. The user's revoked tokens stay revoked.

    Raises:
        ReplyError: the user is missing (107).
        BrokerError: the change could not be saved; the user is still blocked.
    """
    if not body.user:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=missing("user"))
    change = await node.denials.change(Denial(user=body.user, lifted=True))
    return Admitted(change.changed)


async def revoke_token(node: Node, body: RevokeTokenBody, budget: Budget) -> Denied:
    """Refuse a token, or a user's tokens issued up to a time, from now on.

    Raises:
        ReplyError: not exactly one token or user is named, or the time is not in the future
            (107); there are too many denials already (106).
        BrokerError: the revocation could not be saved, and is not in force.
    """
    named = [one for one in (body.jti, body.uid, body.user) if one]
    if len(named) != 1:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NOT_ONE)
    if body.issued_before and not body.user:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NO_USER)
    if body.user:
        before = body.issued_before or math.ceil(node.unix_time())
        denial = Denial(user=body.user, issued_before=before, expire_at=_end(node, body))
    else:
        denial = Denial(token_id=named[0], expire_at=_end(node, body))
    return await _deny(node, denial)


async def _deny(node: Node, denial: Denial) -> Denied:
    change = await node.denials.change(denial)
    return Denied(change.changed, change.ended.clients, change.ended.subscriptions)


def _end(node: Node, body: _Ending) -> int:
    """The Unix time at which the denial expires; 0 for never."""
    now = node.unix_time()
    if body.expire_at and body.ttl:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_TWO_ENDS)
    if body.expire_at and body.expire_at <= now:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=IN_THE_PAST)
    return math.ceil(now + body.ttl) if body.ttl else body.expire_at
