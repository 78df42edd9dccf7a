"""Which web pages may connect: a browser's `Origin`, `Host` and `Sec-Fetch-Site` judged. Pure.

Rule: the parts of an origin are compared (scheme, host, port), never its text. So one origin has
one meaning in every spelling: letter case, default ports, brackets of IPv6 and IDNA do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

import msgspec

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
LOOPBACK_ORIGINS: Final = tuple(
    f"{scheme}://{host}:*"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[::1]")
)

ANY: Final = "*"
"""Stands for every page."""
NULL: Final = "null"
"""What browsers send for a page without an origin, a sandboxed frame's say."""
ANY_PORT: Final = -1
"""The port of a glob that matches every port."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NEVER_PAGES: Final = {"ws": "http", "wss": "https"}
_HOST_LIMIT: Final = 253  # characters of a DNS name (RFC 1035); IDNA's codec is slow for more
_HOST: Final = re.compile(r"[a-z0-9_.-]+")
_HOST_GLOB: Final = re.compile(r"[a-z0-9_.*?-]+")
_SCHEME_GLOB: Final = re.compile(r"[a-z*?][a-z0-9+.*?-]*")
# Browsers keep these letters (IDNA 2008), Python's codec replaces or removes them (IDNA 2003).
_DEVIATIONS: Final = re.compile("[\u00df\u03c2\u200c\u200d]")
_OWN_SITES: Final = (None, "same-origin", "none")


class Page(Enum):
    """What kind of page sends a request."""

    FOREIGN = "foreign"
    """It may not connect."""
    ANYBODY = "anybody"
    """Only `*` allows it, so its browser's cookies prove nothing: the user did not choose it."""
    TRUSTED = "trusted"
    """Our own, an allowed one, or no page at all."""


class Origin(msgspec.Struct, frozen=True):
    """An origin, or the glob of origins. `port` is None for the default port of the scheme."""

    scheme: str
    host: str
    port: int | None


def judge_page(
    origin: str | None, host: str | None, site: str | None, allowed: Sequence[str]
) -> Page:
    """Say what kind of page sends a request (protocol, section 2.1).

    A page of our own host is trusted, and a page that one of the globs names. A request without
    `Origin` does not come from a page, or comes from a page of ours; but a browser leaves `Origin`
    out for an image or a frame of any page, and then says so in `Sec-Fetch-Site`.

    Args:
        origin: The header `Origin`; None if it is missing.
        host: The header `Host`; None if it is missing.
        site: The header `Sec-Fetch-Site`; None if it is missing.
        allowed: The globs, as `parse_glob` takes them.
    """
    if origin is None:
        if site in _OWN_SITES:
            return Page.TRUSTED
    elif origin_allowed(origin, host, allowed):
        return Page.TRUSTED
    return Page.ANYBODY if ANY in allowed else Page.FOREIGN


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether an origin is our own host's, or one of the globs names it; `*` names none.

    A request without the header does not come from a page.
    """
    if origin is None:
        return True
    found = parse_origin(origin)
    if found is None:
        return False
    return _is_own(found, host) or any(
        _matches(found, parse_glob(text)) for text in allowed if text != ANY
    )


def host_allowed(host: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether the header `Host` names a host of ours, with any port; a missing one does not.

    Args:
        host: The header's value; None if it is missing.
        allowed: Globs, as `parse_host_glob` returns them.
    """
    return host is not None and len(host) <= 2 * _HOST_LIMIT and _host_allowed(host, allowed)


@lru_cache(64)
def _host_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    # Cached, because a back end names the same host with each of its calls.
    found = parse_host(host)
    return found is not None and any(fnmatchcase(found[0], glob) for glob in allowed)


def _is_own(origin: Origin, host: str | None) -> bool:
    if host is None or origin.scheme not in _DEFAULT_PORTS:
        return False
    ours = parse_host(host)
    if ours is None or ours[0] != origin.host:
        return False
    return port_in_force(ours[1], origin.scheme) == origin.port


def _matches(origin: Origin, glob: Origin) -> bool:
    return (
        (glob.port == ANY_PORT or port_in_force(glob.port, origin.scheme) == origin.port)
        and fnmatchcase(origin.scheme, glob.scheme)
        and fnmatchcase(origin.host, glob.host)
    )


def parse_origin(text: str) -> Origin | None:
    """Read the `Origin` header; None if its value is not an origin."""
    if text == NULL:
        return Origin(NULL, "", None)
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    if not colon or not scheme:
        return None
    if not rest and scheme not in _DEFAULT_PORTS:
        return Origin(scheme, "", None)  # file://
    found = parse_host(rest)
    if found is None:
        return None
    host, port = found
    return Origin(scheme, host, port_in_force(port, scheme))


def port_in_force(written: int | None, scheme: str) -> int | None:
    """The port that is written, else the scheme's own."""
    return _DEFAULT_PORTS.get(scheme) if written is None else written


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Read `host[:port]`; None if it is not one. IPv6 comes back without brackets."""
    if len(text) > 2 * _HOST_LIMIT:
        return None
    try:
        host, port = _split(text)
        if port and not (port.isascii() and port.isdigit() and int(port) <= 65_535):
            return None
        host = host if ":" in host else _ascii(host)
    except ValueError:
        return None
    if ":" not in host and not _HOST.fullmatch(host):
        return None
    return host, int(port) if port else None


def _split(text: str) -> tuple[str, str]:
    """The host and the port of `host[:port]`, each as written, but IPv6 in its usual form.

    Raises:
        ValueError: brackets without an IPv6 address in them.
    """
    if not text.startswith("["):
        host, _, port = text.partition(":")
        return host, port
    inside, bracket, rest = text[1:].partition("]")
    if not bracket or "%" in inside or (rest and not rest.startswith(":")):
        raise ValueError("[ and ] are for an IPv6 address, as in http://[::1]:3000")
    return str(IPv6Address(inside)), rest[1:]


def _ascii(host: str) -> str:
    """The host in lower case, an international one as browsers send it (`xn--...`).

    Raises:
        ValueError: no host has this name.
    """
    host = host.lower()
    if host.isascii():
        return host
    if len(host) > _HOST_LIMIT:
        raise ValueError("is too long")
    return host.encode("idna").decode().lower()


@lru_cache(256)
def parse_glob(text: str) -> Origin:
    """Read one of `allowed_origins` except `*`.

    `*` stands for any characters of a host, for any port, or for any scheme; `https://*` means
    every host with any port.

    Raises:
        ValueError: no origin can match; the text says what is right.
    """
    if text in (NULL, ANY):
        return Origin(text, "", None)
    scheme, colon, rest = text.lower().partition("://")
    if not colon:
        raise ValueError(f"{text!r} has no scheme: write https://{text.strip('/')}")
    if scheme in _NEVER_PAGES:
        right = f"{_NEVER_PAGES[scheme]}://{rest}"
        raise ValueError(f"{text!r} is not the origin of a page: write {right}")
    if not _SCHEME_GLOB.fullmatch(scheme):
        raise ValueError(f"{text!r} has an invalid scheme")
    for mark in "/#":
        if mark in rest:
            right = f"{scheme}://{rest.partition(mark)[0]}"
            raise ValueError(f"{text!r} is more than an origin: write {right}")
    if not rest:
        if scheme in _DEFAULT_PORTS:
            raise ValueError(f"{text!r} has no host")
        return Origin(scheme, "", None)
    try:
        host, port = _split(rest)
        host = host if rest.startswith("[") else _glob_of_host(host)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if port == ANY or (host == ANY and not port):
        return Origin(scheme, host, ANY_PORT)
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError(f"{text!r} has an invalid port")
    return Origin(scheme, host, int(port) if port else None)


@lru_cache(256)
def parse_host_glob(text: str) -> str:
    """Read one of `allowed_hosts`: a name, an address, or a glob such as `*.example.com`.

    Raises:
        ValueError: no `Host` can match; the text says what is right.
    """
    try:
        if text.startswith("["):
            host, port = _split(text)
            if port:
                raise ValueError("a port: write the host alone")
            return host
        if text.count(":") > 1:
            return str(IPv6Address(text))
        if "/" in text:
            raise ValueError("more than a host: write the host alone")
        if ":" in text:
            raise ValueError("a port: write the host alone")
        return _glob_of_host(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _glob_of_host(text: str) -> str:
    """The glob of a host, its international labels as browsers send them."""
    if _DEVIATIONS.search(text):
        raise ValueError("write the host as browsers send it, in its form xn--...")
    try:
        labels = [label if label.isascii() else _ascii(label) for label in text.lower().split(".")]
    except ValueError:
        raise ValueError("is not the name of a host") from None
    glob = ".".join(labels)
    if not _HOST_GLOB.fullmatch(glob):
        raise ValueError("a host is letters, digits, dots and hyphens, and * and ? in a glob")
    return glob
