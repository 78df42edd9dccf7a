"""`block_user`, `unblock_user` and `revoke_token`: whom not to let in any more.

What they say holds at once, for those who are connected, too. Each may end by itself, at a time
(`expire_at`, Unix seconds) or after some (`ttl`); without either it holds until it is lifted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import msgspec

from repeater.access.grants import Denial
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

Name = Annotated[str, msgspec.Meta(max_length=1024)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Ending(msgspec.Struct, frozen=True):
    expire_at: Whole = 0
    ttl: Whole = 0


class BlockUserBody(_Ending, frozen=True):
    """`POST /api/block_user`. The user's connections are closed with 3503."""

    user: Name = ""


class UnblockUserBody(msgspec.Struct, frozen=True):
    """`POST /api/unblock_user`. A user that is not blocked is no mistake."""

    user: Name = ""


class RevokeTokenBody(_Ending, frozen=True):
    """`POST /api/revoke_token`: one token by its `jti` (or `uid`), or all of a `user`.

    Those of a user that were issued before `issued_before`, by default up to now, the second
    under way included. Connections that they proved are closed with 3500, subscriptions ended.
    """

    jti: Name = ""
    uid: Name = ""
    user: Name = ""
    issued_before: Whole = 0


class Done(msgspec.Struct, frozen=True):
    """It holds; there is nothing to tell."""


async def block_user(node: Node, body: BlockUserBody, budget: Budget) -> Done:
    """Close a user's connections and let in no other until it is over, or lifted.

    Raises:
        ReplyError: there is no user, or no time that lies ahead (107); too many already (106).
        BrokerError: it could not be kept, and does not hold.
    """
    if not body.user:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    await node.denials.change(Denial(user=body.user, expire_at=_end(node, body)))
    return Done()


async def unblock_user(node: Node, body: UnblockUserBody, budget: Budget) -> Done:
    """Let a user in again. Its revoked tokens stay revoked.

    Raises:
        ReplyError: there is no user (107).
        BrokerError: it could not be kept; the user is still blocked.
    """
    if not body.user:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    await node.denials.change(Denial(user=body.user, lifted=True))
    return Done()


async def revoke_token(node: Node, body: RevokeTokenBody, budget: Budget) -> Done:
    """Have a token, or a user's tokens up to a time, prove nothing any more.

    Raises:
        ReplyError: not exactly one token or user is named, or there is no time that lies ahead
            (107); too many already (106).
        BrokerError: it could not be kept, and does not hold.
    """
    named = [one for one in (body.jti, body.uid, body.user) if one]
    if len(named) != 1 or (body.issued_before and not body.user):
        raise ReplyError(ErrorCode.BAD_REQUEST)
    if body.user:
        before = body.issued_before or math.ceil(node.unix_time())
        denial = Denial(user=body.user, issued_before=before, expire_at=_end(node, body))
    else:
        denial = Denial(token_id=named[0], expire_at=_end(node, body))
    await node.denials.change(denial)
    return Done()


def _end(node: Node, body: _Ending) -> int:
    """When it ends by itself, Unix seconds; 0 for never."""
    now = node.unix_time()
    if body.expire_at and (body.ttl or body.expire_at <= now):
        raise ReplyError(ErrorCode.BAD_REQUEST)
    return math.ceil(now + body.ttl) if body.ttl else body.expire_at
