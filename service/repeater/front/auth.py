"""Who may connect and to what, decided before a connection becomes a client.

The same for every way in. Without credentials nothing is open, unless the options say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from repeater.access.grants import (
    ConnectionGrant,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.errors import FORCE_DISCONNECT, BrokerError, ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.node import Node

Query = Mapping[str, Sequence[str]]

TOKEN_COOKIE: Final = "repeater_token"
_BEARER: Final = "bearer "


class RefusedError(Exception):
    """A connection is not to be opened; `status` is the HTTP answer to its request."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def header_token(authorization: str | None, cookie: str | None) -> str:
    """The connection token among a request's headers, empty for none: `Bearer`, or a cookie."""
    if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    if not cookie or TOKEN_COOKIE not in cookie:
        return ""
    try:
        morsel = SimpleCookie(cookie).get(TOKEN_COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


async def identify(node: Node, token: str) -> ConnectionGrant:
    """Who a plain subscriber is: whom its token says, or nobody without one.

    In development mode a token that proves nothing is as good as none.

    Raises:
        RefusedError: 401 for a token that proves nothing; 403 for a revoked one, or a blocked
            user; 429 for a user with too many connections; 503 when the token's keys can't be
            had now.
    """
    grant = ConnectionGrant()
    if token:
        try:
            if node.verifier is None:
                raise TokenInvalidError("no keys")
            grant = await node.verifier.verify_connection(token)
            grant = msgspec.structs.replace(grant, by_token=True)
        except (TokenExpiredError, TokenInvalidError):
            if not node.options.insecure:
                raise RefusedError(HTTPStatus.UNAUTHORIZED) from None
        except BrokerError:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE) from None
    if 0 < grant.expire_at <= node.unix_time():
        raise RefusedError(HTTPStatus.UNAUTHORIZED)
    _refuse_unwelcome(node, grant)
    return grant


def _refuse_unwelcome(node: Node, grant: ConnectionGrant) -> None:
    """As for a Centrifugo client, by HTTP's statuses; each refusal is counted."""
    refusal = node.denials.refusal(grant)
    if refusal is not None:
        node.limited["blocked" if refusal is FORCE_DISCONNECT else "revoked"] += 1
        raise RefusedError(HTTPStatus.FORBIDDEN)
    most = node.options.limits.connections_per_user
    if most and grant.user and len(node.registry.users.get(grant.user, ())) >= most:
        node.limited["connections_per_user"] += 1
        raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS)


def plain_channels(
    node: Node, query: Query, grant: ConnectionGrant
) -> dict[str, SubscriptionGrant]:
    """The channels of a plain subscriber: those that its request names, each once.

    Without a name those of its token, and without such the default, if there is one.

    Raises:
        RefusedError: 401 for nobody, where nobody is not allowed; 403 where this user may not
            subscribe; 400 without any name, for an invalid one, or for more channels than a
            connection may have; 503 at shutdown.
    """
    refuse_while_draining(node)
    names = list(dict.fromkeys(query.get("channel", ())))
    default = [node.options.default_channel] if node.options.default_channel else []
    names = names or list(grant.channels) or default
    if not names:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if node.options.public_channels.issuperset(names):
        return dict.fromkeys(names, SubscriptionGrant())
    if not (grant.user or node.options.insecure or node.options.allow_anonymous):
        raise RefusedError(HTTPStatus.UNAUTHORIZED)
    if len(names) > node.options.channel_limit:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    try:
        for name in names:
            if name in grant.channels:
                node.channels.options(name)
            else:
                node.channels.check_subscribe(name, grant.user)
    except ReplyError as error:
        denied = error.code is ErrorCode.PERMISSION_DENIED
        status = HTTPStatus.FORBIDDEN if denied else HTTPStatus.BAD_REQUEST
        raise RefusedError(status) from None
    return {name: grant.channels.get(name, SubscriptionGrant()) for name in names}


def refuse_while_draining(node: Node) -> None:
    """A node that shuts down takes nobody in.

    Raises:
        RefusedError: 503.
    """
    if node.draining:
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE)


def origin_allowed(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a browser's page of this origin may connect (protocol, section 2.1).

    A request without the header comes from no page; a page of our own host always may; others
    must match one of the globs.
    """
    if origin is None:
        return True
    try:
        own = urlsplit(origin).netloc
    except ValueError:
        return False
    if own and own == host:
        return True
    return any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in allowed)


def wants_protobuf(query: Query) -> bool:
    """Whether the client asks for the protocol's binary form by its address (section 2.1)."""
    return "protobuf" in (*query.get("format", ()), *query.get("cf_protocol", ()))


def connect_parameter(query: Query) -> str:
    """The connect request in the address, which comes before any message; empty for none."""
    return first_of(query, "cf_connect")


def first_of(query: Query, name: str) -> str:
    """A parameter's first value, empty for none."""
    return next(iter(query.get(name, ())), "")
