"""Grants as applications write them, in tokens, callbacks and the server API alike (section 13).

JSON that passes through (`info`, `data`, `meta`) becomes one line without blanks, so that it fits
into a frame as it is. Its numbers keep every digit.
"""

from __future__ import annotations

import base64

import msgspec

from repeater.access.grants import Overrides, SubscriptionGrant


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
        info=json_of(options.info, options.b64info),
        data=json_of(options.data, options.b64data),
        overrides=overrides_of(options.override),
    )


def overrides_of(claims: OverrideClaims | None) -> Overrides:
    """The channel options that an `override` sets."""
    if claims is None:
        return Overrides()
    switches = {name: getattr(claims, name) for name in claims.__struct_fields__}
    return Overrides(**{name: one.value for name, one in switches.items() if one is not None})


def json_of(plain: msgspec.Raw, b64: str | None) -> bytes:
    """The JSON of one of these two claims; base64 wins, as in Centrifugo. Empty without both.

    Raises:
        ValueError: the base64 claim is not base64 of JSON.
    """
    if not b64:
        return one_line(bytes(plain))
    try:
        text = base64.b64decode(b64, validate=True)
        text.decode()
    except ValueError:
        raise ValueError("not base64 of text") from None
    return one_line(text)


def one_line(text: bytes) -> bytes:
    """The same JSON without line breaks and blanks; empty for `null` and for an empty text.

    Raises:
        ValueError: the text is not JSON.
    """
    if not text:
        return b""
    try:
        line = msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(reason_of(error)) from None
    return b"" if line == b"null" else line


def reason_of(error: Exception) -> str:
    """Where in the JSON the mistake is; input that is not text is only called "not JSON"."""
    return str(error) if isinstance(error, msgspec.DecodeError) else "not JSON"
