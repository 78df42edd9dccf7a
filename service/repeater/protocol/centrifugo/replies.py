"""The replies and pushes to a Centrifugo client, as values that every format writes.

In JSON, zero values are left out (protocol, section 2.4), except where an SDK needs them.
"""

from __future__ import annotations

import msgspec

from repeater.errors import ApplicationError, Disconnect, ErrorCode, ReplyError, Unsubscribed
from repeater.publication import ClientInfo, Publication


class PublicationResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A publication in a history or a recovery."""

    data: msgspec.Raw
    offset: int = 0
    tags: dict[str, str] | None = None
    info: ClientInfo | None = None


class SubscribeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to `subscribe`; it also announces a server-side subscription (section 4.1).

    `ttl` is seconds. It always stands beside `expires`, because the Python SDK needs it there.
    """

    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[PublicationResult] | None = None
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: msgspec.Raw | None = None
    was_recovering: bool = False
    delta: bool = False


class ConnectResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to `connect`; `ping` is the whole seconds between pings, 0 without pings."""

    client: str
    version: str
    expires: bool = False
    ttl: int = 0
    data: msgspec.Raw | None = None
    subs: dict[str, SubscribeResult] | None = None
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""


class RefreshResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to `refresh` and `sub_refresh`."""

    expires: bool = False
    ttl: int = 0


class PresenceResult(msgspec.Struct, frozen=True):
    """Answer to `presence`."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(msgspec.Struct, frozen=True):
    """Answer to `presence_stats`."""

    num_clients: int
    num_users: int


class RPCResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to `rpc`: what the back end said."""

    data: msgspec.Raw | None = None


class HistoryResult(msgspec.Struct, frozen=True):
    """Answer to `history`; the position is the stream's top."""

    publications: list[PublicationResult]
    epoch: str
    offset: int


class Empty(msgspec.Struct, frozen=True):
    """A result without fields: the reply still has it, as `{}`."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error. It always has code and message: without them the Python SDK raises KeyError."""

    code: int
    message: str
    temporary: bool = False


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reply, for the command with the same id."""

    id: int
    error: Failure | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: Empty | None = None
    publish: Empty | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStatsResult | None = None
    history: HistoryResult | None = None
    rpc: RPCResult | None = None
    refresh: RefreshResult | None = None
    sub_refresh: RefreshResult | None = None


class Push(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that the server sends unasked, except publications (section 5)."""

    channel: str = ""
    join: dict[str, ClientInfo] | None = None
    leave: dict[str, ClientInfo] | None = None
    unsubscribe: Unsubscribed | None = None
    subscribe: SubscribeResult | None = None
    message: dict[str, msgspec.Raw] | None = None
    connect: ConnectResult | None = None
    disconnect: Disconnect | None = None
    refresh: RefreshResult | None = None


def failure(code: ErrorCode) -> Failure:
    """The error object of a code, as it stands in replies."""
    return Failure(int(code), code.message, code.temporary)


def failure_of(error: ReplyError) -> Failure:
    """The error object of a `ReplyError`, which may be the application's own."""
    if isinstance(error, ApplicationError):
        return Failure(error.number, error.message, error.temporary)
    return Failure(int(error.code), error.message, error.temporary)


def publication_result(publication: Publication, *, quoted: bool = False) -> PublicationResult:
    """A publication in a list; `quoted` makes a JSON string of its data (section 10)."""
    data = publication.data
    if quoted:
        data = msgspec.json.encode(data.decode())
    return PublicationResult(
        msgspec.Raw(data), publication.offset, publication.tags or None, publication.info
    )
