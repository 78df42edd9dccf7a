"""The HTTP headers of a client that its back end gets. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

NONE: Final[Mapping[str, str]] = {}
"""The headers of a connection that keeps none. Nearly all connections share this one object."""


def forwarded(headers: Iterable[tuple[str, str]], allowed: Collection[str]) -> Mapping[str, str]:
    """The headers whose lower-case names are allowed, by name. Repeated headers are joined.

    A value that is not printable ASCII is left out, because the back end might read such a value
    as more than one header.
    """
    if not allowed:
        return NONE
    found: dict[str, str] = {}
    for written, value in headers:
        name, value = written.lower(), value.strip(" \t")
        if name not in allowed or not (value.isascii() and value.isprintable()):
            continue
        between = "; " if name == "cookie" else ", "
        found[name] = f"{found[name]}{between}{value}" if name in found else value
    return found or NONE
