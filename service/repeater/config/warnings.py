"""Settings that are allowed, and yet hardly meant: short secrets, patterns that no name can match.

Only what is certain is told: a warning that is wrong once is not read the next time. No text holds
a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import regex

from repeater.config.errors import Mistake
from repeater.config.settings import Settings, TokenSettings

_SIGNING: Final = 32  # bytes, as many as HMAC-SHA256 has (RFC 7518, section 3.2)
_ASKING: Final = 16  # characters; only the server says whether a guess is right, one at a time
_PATIENCE: Final = 1.0  # seconds for one pattern
# What `regex` reads otherwise than `re`: sets of POSIX, and fuzzy matches such as {e<=1}.
_READ_OTHERWISE: Final = re.compile(r"\[:|\{[^0-9,}]")

_SHORT_SIGNING: Final = (
    "is short, and can be guessed from anything that it has signed; use 32 random bytes, as "
    "repeater config init --secrets makes them"
)
_SHORT_ASKING: Final = f"is short and may be guessed; use {_ASKING} random characters or more"


def warnings_of(settings: Settings) -> Iterator[Mistake]:
    """What is probably not meant in valid settings; an extension's own settings are not judged."""
    for path, secret, least, text in _secrets(settings):
        if 0 < len(secret.encode()) < least:
            yield Mistake(path, text)
    prefix = settings.node_options().private_prefix
    for name, options in settings.node_options().namespaces.items():
        pattern = options.channel_regex
        if pattern is None:
            continue
        beginnings = [f"{name}:"] + ([f"{prefix}{name}:"] if prefix else [])
        if not any(can_match(pattern.pattern, one) for one in beginnings):
            yield Mistake(
                ("namespaces", name, "channel_regex"),
                f"matches no channel of its namespace: the whole name must match, {name}: included",
            )


def can_match(pattern: str, beginning: str) -> bool:
    """Whether a pattern can match a whole text that begins like this; true if nobody knows.

    Of other characters than printable ASCII nobody does: to `re`, a digit such as `²` is one of
    `\\w`, and to `regex` it is not.
    """
    known = beginning.isascii() and beginning.isprintable()
    if not known or _READ_OTHERWISE.search(pattern):
        return True
    try:
        found = regex.fullmatch(pattern, beginning, partial=True, timeout=_PATIENCE)
    except (regex.error, TimeoutError):
        return True
    return found is not None


def _secrets(settings: Settings) -> Iterator[tuple[tuple[str, ...], str, int, str]]:
    """The secrets in the clear, each with its path, its least length, and what if it is shorter."""
    tables: dict[str, TokenSettings | None] = {
        "token": settings.token,
        "subscription_token": settings.subscription_token,
    }
    for table, token in tables.items():
        for name in ("hmac_secret_key", "hmac_previous_secret_key") if token else ():
            secret = getattr(token, name).get_secret_value()
            yield (table, name), secret, _SIGNING, _SHORT_SIGNING
    secret = settings.callback_options().secret
    yield ("callbacks", "secret"), secret, _SIGNING, _SHORT_SIGNING
    for name in ("api_key", "api_previous_key", "metrics_token"):
        key = getattr(settings, name)
        yield (name,), key.get_secret_value() if key else "", _ASKING, _SHORT_ASKING
