"""Which of a client's HTTP headers its back end gets to see. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

NONE: Final[Mapping[str, str]] = {}
"""What nearly every connection keeps: nothing, and all of them the same nothing."""


def forwarded(headers: Iterable[tuple[str, str]], allowed: Collection[str]) -> Mapping[str, str]:
    """Those of the lower-case names that are allowed, by name; a repeated one is joined.

    A value that is not printable ASCII is left out: it might be read as more than one header.
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
