"""What a token, a callback or the server API grants: the same values from each of them.

A grant says what a connection is or may hear; it does not say how the grant was proven.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import BrokerError, RepeaterError
from repeater.json_text import NOTHING, JSONText, json_text


class Overrides(msgspec.Struct, frozen=True):
    """Channel options that a grant sets for one subscription; None leaves the channel's own."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_positioning: bool | None = None
    force_recovery: bool | None = None


def _check_texts(grant: msgspec.Struct, *names: str) -> None:
    """Make fields of a new grant a `JSONText`; whoever makes a grant of other bytes gets an error.

    Raises:
        ValueError: a field is not JSON text.
    """
    for name in names:
        text = getattr(grant, name)
        if type(text) is not JSONText and text is not None:
            checked = json_text(text) if text else NOTHING
            msgspec.structs.force_setattr(grant, name, checked)


class SubscriptionGrant(msgspec.Struct, frozen=True):
    """What one subscription carries. `info` and `data` are JSON text, empty for none.

    Raises:
        ValueError: when it is made, for a text that is not JSON.
    """

    info: bytes = NOTHING
    """Shown to others as `chan_info`."""
    data: bytes = NOTHING
    """Handed to the subscriber in the result."""
    expire_at: int = 0
    """Unix seconds; 0 for never."""
    overrides: Overrides = Overrides()
    token_id: str = ""
    issued_at: int = 0
    by_token: bool = False
    """These three describe the token that granted it, as in a `ConnectionGrant`."""

    def __post_init__(self) -> None:
        _check_texts(self, "info", "data")


NOTHING_GRANTED: Final = SubscriptionGrant()
"""Shared by all subscriptions to which no token and no back end adds anything: it never changes."""


class ConnectionGrant(msgspec.Struct, frozen=True):
    """Who a connection is. `info`, `data` and `meta` are JSON text, empty for none.

    Raises:
        ValueError: when it is made, for a text that is not JSON.
    """

    user: str = ""
    """Empty for an anonymous connection."""
    info: bytes = NOTHING
    """Shown to others as `conn_info`."""
    data: bytes = NOTHING
    """Handed to the client in the connect result."""
    meta: bytes = NOTHING
    """Kept on the server, passed to callbacks, never sent to a client."""
    expire_at: int = 0
    """Unix seconds; 0 for never."""
    channels: dict[str, SubscriptionGrant] = {}
    """Server-side subscriptions."""
    token_id: str = ""
    """The token's `jti`."""
    issued_at: int = 0
    """The token's `iat`, Unix seconds; 0 without one."""
    by_token: bool = False
    """Whether a token proved this grant. A token can be revoked."""

    def __post_init__(self) -> None:
        _check_texts(self, "info", "data", "meta")


class PublicationGrant(msgspec.Struct, frozen=True):
    """How a client may publish, and with which data and tags."""

    data: bytes | None = None
    """In place of the client's data: JSON text, in a binary channel any bytes; None keeps it."""
    tags: dict[str, str] | None = None
    skip_history: bool = False


PUBLISH_AS_IT_IS: Final = PublicationGrant()
"""Of a publication that the options allow: nothing of it is changed."""


class Renewal(msgspec.Struct, frozen=True):
    """What happens to a connection or subscription that expires."""

    expired: bool = False
    """Whether it ends now."""
    expire_at: int = 0
    """When it expires next, Unix seconds; 0 for never."""
    info: bytes | None = None
    """JSON text in place of the info shown to others; None keeps the old info."""
    meta: bytes | None = None
    """JSON text in place of a connection's `meta`; None keeps the old one."""

    def __post_init__(self) -> None:
        _check_texts(self, "info", "meta")


class Caller(msgspec.Struct, frozen=True):
    """The connection that a back end is asked about."""

    client: str
    transport: str
    user: str = ""
    meta: bytes = b""
    """JSON text from the connection's grant, empty for none."""
    headers: Mapping[str, str] = {}
    """The headers of its HTTP request that may be forwarded, by lower-case name."""
    party: str = ""
    """Whose share of the back end's turns its questions take: its user, else its address. Empty
    for a share of its own."""
    protocol: str = "json"
    """What its client speaks: `json` or `protobuf`."""


class SubscriptionClaims(msgspec.Struct, frozen=True):
    """A subscription token's contents: which user may hear which channel."""

    user: str
    channel: str
    client: str = ""
    """The only connection that may use the token; empty for every connection of the user."""
    grant: SubscriptionGrant = SubscriptionGrant()
    token_id: str = ""
    issued_at: int = 0


class Denial(msgspec.Struct, frozen=True):
    """What is refused from now on: a user, one token, or a user's tokens up to some time."""

    user: str = ""
    """The blocked user; with `issued_before`, the user whose tokens are revoked."""
    token_id: str = ""
    """The `jti` of a revoked token; `user` is empty then."""
    issued_before: int = 0
    """Tokens issued before this time are revoked, Unix seconds; 0 blocks the user as a whole."""
    expire_at: int = 0
    """When the denial is forgotten, Unix seconds; 0 for never."""
    lifted: bool = False
    """Whether the denial is taken back."""

    @property
    def key(self) -> tuple[str, str]:
        """What the denial is about; a later denial with the same key replaces the earlier one."""
        if self.token_id:
            return "token", self.token_id
        return ("tokens" if self.issued_before else "user"), self.user


class TokenExpiredError(RepeaterError):
    """The token was good once, or is not good yet; the client should fetch a new one (109)."""

    def __init__(self, text: str = "expired", mend: str = "") -> None:
        super().__init__(text)
        self.why = Why(Cause.TOKEN_EXPIRED, f"the token is good, but {text}", mend)


class TokenInvalidError(RepeaterError):
    """The token proves nothing: wrong signature, algorithm, issuer, audience or shape (3500)."""

    def __init__(self, text: str = "it proves nothing", mend: str = "") -> None:
        super().__init__(text)
        self.why = Why(Cause.TOKEN, f"the token is invalid: {text}", mend)


NO_KEY: Final = ("the server has no key for tokens", "set token.hmac_secret_key, or another key")
"""Text and mend of a token's refusal where nothing can prove it."""


def why_no_keys(error: BrokerError) -> Why:
    """Why a token could not be judged: its issuer did not give its keys."""
    return error.why("", Cause.CALLBACK)


class TokenVerifier(Protocol):
    """Proves tokens. May wait for the keys of an issuer (JWKS), with its own deadline.

    Raises `TokenExpiredError` or `TokenInvalidError` for the token's fault and `BrokerError`
    when the keys are not available now.
    """

    async def verify_connection(self, token: str) -> ConnectionGrant:
        """What a connection token grants."""

    async def verify_subscription(self, token: str) -> SubscriptionClaims:
        """What a subscription token grants."""
