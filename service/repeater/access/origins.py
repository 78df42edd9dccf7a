"""Which web pages may connect: the rule about a browser's `Origin` header. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Return whether a browser's page of this origin may connect (protocol, section 2.1).

    A request without the header does not come from a page; a page of our own host always may;
    others must match one of the globs in `allowed`. Letter case does not count.
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
