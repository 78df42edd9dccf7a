"""Grants as applications write them, in tokens, callbacks and the server API alike (section 13).

JSON that passes through (`info`, `data`, `meta`) becomes a `JSONText`: one line, otherwise as it
was written. `data` may be the value null; null leaves the others out.
"""

from __future__ import annotations

import base64

import msgspec

from repeater.access.grants import Overrides, SubscriptionGrant
from repeater.json_text import NOTHING, JSONText, json_text


class Switch(msgspec.Struct, frozen=True):
    """One overridden channel option. A missing value is false, as in Centrifugo."""

    value: bool = False


class OverrideClaims(msgspec.Struct, frozen=True):
    """The `override` of a subscription."""

    presence: Switch | None = None
    join_leave: Switch | None = None
    force_push_join_leave: Switch | None = None
    force_positioning: Switch | None = None
    force_recovery: Switch | None = None


class SubscriptionOptions(msgspec.Struct, frozen=True):
    """One entry of `subs`."""

    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: OverrideClaims | None = None


def channels_of(
    subs: dict[str, SubscriptionOptions | None] | None, channels: list[str] | None
) -> dict[str, SubscriptionGrant]:
    """The server-side subscriptions that these two claims grant; if both are there, `subs` wins.

    Raises:
        ValueError: a base64 claim is not base64 of JSON.
    """
    options = subs or dict.fromkeys(channels or ())
    return {name: _grant_of(one) for name, one in options.items()}


def _grant_of(options: SubscriptionOptions | None) -> SubscriptionGrant:
    if options is None:
        return SubscriptionGrant()
    return SubscriptionGrant(
        info=info_of(options.info, options.b64info),
        data=data_of(options.data, options.b64data),
        overrides=overrides_of(options.override),
    )


def overrides_of(claims: OverrideClaims | None) -> Overrides:
    """The channel options that an `override` sets."""
    if claims is None:
        return Overrides()
    switches = {name: getattr(claims, name) for name in claims.__struct_fields__}
    return Overrides(**{name: one.value for name, one in switches.items() if one is not None})


def data_of(plain: msgspec.Raw, b64: str | None) -> JSONText:
    """The JSON of one of these two claims; base64 wins, as in Centrifugo. Empty without both.

    Raises:
        ValueError: the text is too deep, or the base64 claim is not base64 of JSON.
    """
    return json_text(data) if (data := bytes_of(plain, b64)) else NOTHING


def bytes_of(plain: msgspec.Raw, b64: str | None) -> bytes:
    """As `data_of`; the base64 claim may hold any bytes.

    Raises:
        ValueError: the text is too deep, or the other claim is not base64.
    """
    if not b64:
        return json_text(bytes(plain)) if plain else NOTHING
    try:
        return base64.b64decode(b64, validate=True)
    except ValueError:
        raise ValueError("not base64 of text") from None


def info_of(plain: msgspec.Raw, b64: str | None = None) -> JSONText:
    """As `data_of`, for a claim that null leaves out: `info` and `meta`."""
    text = data_of(plain, b64)
    return NOTHING if text.strip() == b"null" else text
