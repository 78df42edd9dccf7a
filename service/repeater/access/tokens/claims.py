"""A token's claims, and the grants made of them (protocol, section 13). No I/O and no keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Final, TypeVar

import msgspec

from repeater.access.grant_json import (
    OverrideClaims,
    SubscriptionOptions,
    channels_of,
    data_of,
    info_of,
    overrides_of,
)
from repeater.access.grants import (
    ConnectionGrant,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.protocol.json_faults import fault_of
from repeater.protocol.json_reader import reader

_EXACT = 2**53  # More seconds than this are not a date, and a float would lose their digits.

NumericDate = Annotated[float, msgspec.Meta(ge=-_EXACT, le=_EXACT)]
WholeDate = Annotated[int, msgspec.Meta(ge=-_EXACT, le=_EXACT)]


class Claims(msgspec.Struct, frozen=True):
    """The claims that both kinds of token may have. A claim that is null counts as missing."""

    sub: str | None = None
    exp: NumericDate | None = None
    nbf: NumericDate | None = None
    iat: NumericDate | None = None
    jti: str | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    expire_at: WholeDate | None = None
    channel: str | None = None
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None

    @property
    def audiences(self) -> list[str]:
        """`aud` as a list, also if the token has a single text; empty without `aud`."""
        return [self.aud] if isinstance(self.aud, str) else self.aud or []

    @property
    def until(self) -> int:
        """The time when the grant ends: `expire_at` if present, else `exp`; 0 for never."""
        if self.expire_at is not None:
            return max(0, self.expire_at)
        return max(0, int(self.exp or 0))


class ConnectionToken(Claims, frozen=True):
    """The claims of a connection token."""

    channels: list[str] | None = None
    subs: dict[str, SubscriptionOptions | None] | None = None
    meta: msgspec.Raw = msgspec.Raw()


class SubscriptionToken(Claims, frozen=True):
    """The claims of a subscription token."""

    client: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: OverrideClaims | None = None


C = TypeVar("C", bound=Claims)

_USER_AS_TEXT: Final = "write the user's id as text, in Python str(user.pk)"
_LIST_OF_CHANNELS: Final = 'write a list of names: "channels": ["news"]'
_MENDS: Final = {
    "sub": _USER_AS_TEXT,
    "channels": _LIST_OF_CHANNELS,
    "exp": "write Unix seconds, in Python int(time.time()) + 600",
    "subs": 'write an object with a name for each channel: "subs": {"news": {}}',
}
_YEAR_1973: Final = 10**8  # seconds; a smaller number is a duration, written by mistake
_YEAR_5138: Final = 10**11  # seconds; a larger number is milliseconds, written by mistake
_BEGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)

_AROUND = 3  # levels around the deepest part that passes through: `{"subs":{"c":{"info":`
_read_any = reader(dict[str, msgspec.Raw], around=_AROUND)


@cache
def _reader(kind: type[C]) -> Callable[[bytes | str], C]:
    return reader(kind, around=_AROUND)


def decode_claims(payload: bytes, kind: type[C]) -> C:
    """Read a token's payload.

    Raises:
        TokenInvalidError: the payload is not JSON, or a claim has the wrong type.
    """
    try:
        claims: C = _reader(kind)(payload)
    except msgspec.DecodeError as error:
        fault = fault_of(error)
        if not fault.place:
            raise TokenInvalidError(
                f"its claims are wrong: the payload {fault.text}", "write a JSON object"
            ) from None
        raise TokenInvalidError(fault.about("claim"), _MENDS.get(fault.place, "")) from None
    return claims


def user_of(payload: bytes, claims: Claims, name: str) -> str:
    """The user's id in the claim `name`; empty (anonymous) if the claim is missing.

    Raises:
        TokenInvalidError: the claim is neither text nor, unless it is `sub`, a whole number.
    """
    if name == "sub":
        return claims.sub or ""
    raw = _read_any(payload).get(name, msgspec.Raw(b"null"))
    try:
        found = msgspec.json.decode(raw, type=str | int | None)
    except msgspec.DecodeError:
        raise TokenInvalidError(f"the claim {name} is not a user id", _USER_AS_TEXT) from None
    return "" if found is None else str(found)


def check_times(claims: Claims, now: float, leeway: float = 0.0) -> None:
    """Compare `exp` and `nbf` with the time, Unix seconds.

    Raises:
        TokenExpiredError: the time is past `exp`, or before `nbf` by more than the leeway.
    """
    if claims.exp is not None and now >= claims.exp:
        ago = f"expired {_seconds(now - claims.exp)} s ago"
        text = f"{ago}: its exp is {date(claims.exp)}, our time is {date(now)}"
        raise TokenExpiredError(text, _mend_expiry(claims, now))
    if claims.nbf is not None and now < claims.nbf - leeway:
        ahead = f"not valid yet, only in {_seconds(claims.nbf - now)} s"
        text = f"{ahead}: its nbf is {date(claims.nbf)}, our time is {date(now)}"
        raise TokenExpiredError(text, _mend_begin(claims.nbf))


def _mend_expiry(claims: Claims, now: float) -> str:
    """What an expired token's issuer should do: nothing, or a mistake that its times show."""
    exp, made = claims.exp or 0.0, claims.iat
    if exp < _YEAR_1973:
        return "exp is a time, not a duration: in Python int(time.time()) + 600"
    if made is None:
        return "fetch a new one; if this one was new, set the clocks of issuer and server right"
    if exp <= made:
        return f"its exp must be after its iat, {date(made)}"
    return (
        f"fetch a new one; if this one was new, a clock is off: it was made at {date(made)} by "
        f"its issuer's clock, {_seconds(now - made)} s ago by ours"
    )


def _mend_begin(begin: float) -> str:
    if begin > _YEAR_5138:
        return "nbf is Unix seconds, not milliseconds"
    return (
        "the issuer's clock is ahead or ours is behind: set both right, or allow for it by leeway"
    )


def _seconds(span: float) -> str:
    """A span as whole seconds, or as a fraction below one."""
    return f"{span:.0f}" if span >= 1 else f"{span:.1g}"


def date(seconds: float) -> str:
    """A time in Unix seconds as a date, or the number itself where the calendar ends."""
    try:
        return (_BEGIN + timedelta(seconds=int(seconds))).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{seconds:.0f}"


def connection_grant(user: str, claims: ConnectionToken) -> ConnectionGrant:
    """What the claims of a good connection token grant.

    Raises:
        TokenInvalidError: a base64 claim is not base64 of JSON.
    """
    with _invalid_token():
        return ConnectionGrant(
            user=user,
            info=info_of(claims.info, claims.b64info),
            meta=info_of(claims.meta),
            expire_at=claims.until,
            channels=channels_of(claims.subs, claims.channels),
            token_id=claims.jti or "",
            issued_at=int(claims.iat or 0),
        )


def subscription_claims(user: str, channel: str, claims: SubscriptionToken) -> SubscriptionClaims:
    """What the claims of a good subscription token grant.

    Raises:
        TokenInvalidError: a base64 claim is not base64 of JSON.
    """
    with _invalid_token():
        grant = SubscriptionGrant(
            info=info_of(claims.info, claims.b64info),
            data=data_of(claims.data, claims.b64data),
            expire_at=claims.until,
            overrides=overrides_of(claims.override),
        )
    return SubscriptionClaims(
        user=user,
        channel=channel,
        client=claims.client or "",
        grant=grant,
        token_id=claims.jti or "",
        issued_at=int(claims.iat or 0),
    )


@contextmanager
def _invalid_token() -> Iterator[None]:
    """Raise a mistake in a grant as a mistake in its token."""
    try:
        yield
    except ValueError as error:
        raise TokenInvalidError(f"a claim of info or data: {error}") from None
