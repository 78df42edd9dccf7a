"""`channel_info`: a channel's options, and what a user may do there, with the rule that says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from repeater.access.grants import ConnectionGrant
from repeater.access.permissions import Permission, permissions
from repeater.clients.denials import why_denied

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node
    from repeater.options import ChannelOptions


class ChannelInfoBody(msgspec.Struct, frozen=True):
    """`POST /api/channel_info`. Without a user, it is about anonymous clients."""

    channel: str = ""
    user: str = ""


class ChannelInfoResult(msgspec.Struct, frozen=True):
    """A channel's options and a user's permissions.

    `table` is the table of the configuration that has the options. The permissions are `connect`,
    `subscribe`, `publish`, `presence` and `history`; the last three for a client that has
    subscribed, if it may.
    """

    table: str
    options: dict[str, object]
    permissions: dict[str, Permission]


async def channel_info(node: Node, body: ChannelInfoBody, _budget: Budget) -> ChannelInfoResult:
    """Return a channel's options, and what a user may do there and why.

    The channel need not be in use. What a token of the user grants beside the rules is not known
    here: a subscription token opens channels that `subscribe` says no for.

    Raises:
        ReplyError: the channel is missing or its name is wrong (107), or its namespace is unknown
            (102).
    """
    rules = node.channels
    found = permissions(rules, body.channel, body.user)
    return ChannelInfoResult(
        rules.table(body.channel),
        _readable(rules.options(body.channel)),
        {"connect": _connect(node, body.user), **found},
    )


def _connect(node: Node, user: str) -> Permission:
    """Whether the user may connect at all."""
    refusal = node.denials.refusal(ConnectionGrant(user=user))
    if refusal is not None:
        why = why_denied(refusal)
        return Permission("no", why.text, why.mend)
    if user:
        return _connect_as_user(node)
    for setting, allowed in (
        ("development mode is on", node.options.insecure),
        ("allow_anonymous is true", node.options.allow_anonymous),
    ):
        if allowed:
            return Permission("yes", setting)
    if node.asks("connect") is not None:
        return Permission("asked", "the back end decides who connects")
    if node.options.allow_guest_tokens:
        return Permission("yes", "allow_guest_tokens is true, for a token without a user's id")
    return Permission(
        "no", "anonymous clients may not connect", "set allow_anonymous = true, or send a token"
    )


def _connect_as_user(node: Node) -> Permission:
    if node.verifier is not None:
        return Permission("yes", "with a token of this user")
    if node.asks("connect") is not None:
        return Permission("asked", "the back end says who connects")
    return Permission(
        "no",
        "nothing proves who a client is: there is no key for tokens",
        "set hmac_secret_key or another key in [token], or connect_url in [callbacks]",
    )


def _readable(options: ChannelOptions) -> dict[str, Any]:
    """The options as values of JSON."""
    return {name: _value(value) for name, value in msgspec.structs.asdict(options).items()}


def _value(value: object) -> object:
    if isinstance(value, re.Pattern):
        return value.pattern
    return sorted(value) if isinstance(value, frozenset) else value
