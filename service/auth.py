"""Who may connect and to what, decided before a connection becomes a client.

The same for every way in. Without credentials nothing is open, unless the options say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from service.node import Node

Query = Mapping[str, Sequence[str]]


class RefusedError(Exception):
    """A connection is not to be opened; `status` is the HTTP answer to its request."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def plain_channels(node: Node, query: Query) -> list[str]:
    """The channels that a plain subscriber's request names, each once; the default for none.

    Raises:
        RefusedError: 401 where anonymous clients are not allowed, 403 where they may not
            subscribe; 400 for a name that is none, or for more channels than a connection
            may have; 503 at shutdown.
    """
    refuse_while_draining(node)
    names = list(dict.fromkeys(query.get("channel", ()))) or [node.options.default_channel]
    if node.options.public_channels.issuperset(names):
        return names
    if not (node.options.insecure or node.options.allow_anonymous):
        raise RefusedError(HTTPStatus.UNAUTHORIZED)
    if len(names) > node.options.channel_limit:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    try:
        for name in names:
            node.channels.check_subscribe(name, "")
    except ReplyError as error:
        denied = error.code is ErrorCode.PERMISSION_DENIED
        status = HTTPStatus.FORBIDDEN if denied else HTTPStatus.BAD_REQUEST
        raise RefusedError(status) from None
    return names


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
    own = urlsplit(origin).netloc
    if own and own == host:
        return True
    return any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in allowed)


def wants_protobuf(query: Query) -> bool:
    """Whether the client asks for the protocol's binary form by its address (section 2.1)."""
    return "protobuf" in (*query.get("format", ()), *query.get("cf_protocol", ()))


def connect_parameter(query: Query) -> bytes:
    """The connect request in the address, which comes before any message; empty for none."""
    return next(iter(query.get("cf_connect", ())), "").encode("latin-1")
