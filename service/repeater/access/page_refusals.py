"""Why a page or a host is refused: what came, what would be right, and what is near. Pure.

Rule: what a stranger sent is shown as Python writes a text, and shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Final

import msgspec

from repeater.access.origins import (
    ANY,
    ANY_PORT,
    LOOPBACK_HOSTS,
    LOOPBACK_ORIGINS,
    NULL,
    Origin,
    parse_glob,
    parse_host,
    parse_origin,
    port_in_force,
)
from repeater.causes import Cause, Why

_SHOWN: Final = 200
"""Characters of a header that a line of the log shows."""
_NAMED: Final = 5
"""Entries of a setting that a line of the log shows."""
_KEEP: Final = "have the proxy keep Host (nginx: proxy_set_header Host $http_host)"
_HERE: Final = "pages of this machine, in development mode"


_Near = tuple[str, str]
"""How an origin differs from a right one, and what would make it right."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers of a refused request say; None for a missing one."""

    origin: str | None
    host: str | None
    repeated: bool = False
    """Whether `Origin` or `Host` came more than once."""
    first_host: str | None = None
    """The host that the page asked for, by the first of `X-Forwarded-Host` or `Forwarded`."""
    proxied: bool = False
    """Whether a header says that a proxy is in between."""


def why_foreign(asked: Asked, allowed: Sequence[str]) -> Why:
    """Why a page's request is refused; `allowed` are the origins in force."""
    if asked.repeated:
        return _why("the request has the header Origin or Host twice", "send each of them once")
    if asked.origin is None:
        text = "a page of another site asks, and its browser names no origin"
        return _why(text, "use fetch, EventSource or WebSocket: images, frames and links name none")
    shown, found = _shown(asked.origin), parse_origin(asked.origin)
    if found is None:
        mend = "an origin is a scheme, a host and a port, such as https://example.com:8443"
        return _why(f"{shown} is not the origin of a page", mend)
    text = f"the page's origin {shown} is not in allowed_origins ({_listed(allowed)})"
    add = f"add {shown} to allowed_origins"
    if found.scheme == "null":
        reason = "a file (file://), a sandboxed frame or a redirect has none"
        return _why(f"{text}: {reason}", f"serve the page by http://, or {add}")
    text += f", and not our own (Host is {_shown(asked.host or '')})"
    near = (
        _changed(found, asked)
        or _renamed(found, asked)
        or _near_allowed(found, allowed)
        or _other_port(found, asked)
    )
    if near is None:
        return _why(text, add)
    reason, mend = near
    return _why(f"{text}: {reason}", f"{mend}, or {add}" if mend else add)


def why_other_host(asked: Asked, allowed: Sequence[str]) -> Why:
    """Why a request for another host is refused; `allowed` are the hosts in force."""
    if asked.repeated or not asked.host:
        text = "the request names two hosts" if asked.repeated else "the request names no host"
        return Why(Cause.HOST, text, "send the header Host once")
    shown, found = _shown(asked.host), parse_host(asked.host)
    if found is None:
        return Why(Cause.HOST, f"{shown} is not the name of a host")
    here = ": this machine, in development mode" if tuple(allowed) == LOOPBACK_HOSTS else ""
    text = f"the request's Host {shown} is not in allowed_hosts ({_some(allowed)}{here})"
    mend = f"add {_shown(found[0])} to allowed_hosts"
    if asked.first_host and asked.first_host != asked.host:
        text = f"{text}: {_change(asked)}"
        mend = f"{_KEEP}, or {mend}"
    return Why(Cause.HOST, text, mend)


def _why(text: str, mend: str) -> Why:
    return Why(Cause.ORIGIN, text, mend)


def _changed(origin: Origin, asked: Asked) -> _Near | None:
    """Whether a proxy has changed the host that the page asked for."""
    sent = parse_host(asked.host or "")
    if sent is None or sent[0] == origin.host:
        return None
    first = parse_host(asked.first_host or "")
    if first is None:
        return ("a proxy may have changed Host", _KEEP) if asked.proxied else None
    return (_change(asked), _KEEP) if first[0] == origin.host else None


def _change(asked: Asked) -> str:
    before, after = _shown(asked.first_host or ""), _shown(asked.host or "")
    return f"a proxy has changed Host from {before} to {after}"


def _renamed(origin: Origin, asked: Asked) -> _Near | None:
    """Whether the page's host and ours are two names of this machine."""
    ours = parse_host(asked.host or "")
    if ours is None or ours[0] == origin.host:
        return None
    host, port = ours[0], port_in_force(ours[1], origin.scheme)
    if origin.port != port or not (_is_here(host) and _is_here(origin.host)):
        return None
    return _two_names(origin, Origin(origin.scheme, host, port))


def _other_port(origin: Origin, asked: Asked) -> _Near | None:
    """Whether the page's host is ours, and its port is another."""
    ours = parse_host(asked.host or "")
    if ours is None or ours[0] != origin.host:
        return None
    return "another port is another origin", _KEEP if asked.proxied or asked.first_host else ""


def _two_names(page: Origin, other: Origin) -> _Near:
    right = _written(other)
    reason = f"to a browser {_written(page)} and {right} are two origins"
    return reason, f"open the page as {right}"


def _near_allowed(origin: Origin, allowed: Sequence[str]) -> _Near | None:
    """How the origin differs from one of the allowed ones, if one is near."""
    for text in _chosen(allowed):
        if text not in (ANY, NULL):
            near = _differing(origin, text)
            if near is not None:
                return near
    return None


def _differing(page: Origin, text: str) -> _Near | None:
    """How a page's origin differs from this one of the allowed ones, if the two are near."""
    glob = parse_glob(text)
    port = port_in_force(glob.port, page.scheme)
    same_scheme = fnmatchcase(page.scheme, glob.scheme)
    if fnmatchcase(page.host, glob.host):
        if not same_scheme:
            return f"{text!r} has another scheme", f"open the page by {glob.scheme}"
        return f"{text!r} has the port {port}", ""
    if not same_scheme or port not in (ANY_PORT, page.port):
        return None
    if _is_here(glob.host) and _is_here(page.host):
        return _two_names(page, Origin(page.scheme, glob.host, page.port))
    if glob.host == f"*.{page.host}":
        return f"{text!r} does not name {page.host} itself", ""
    if page.host == f"www.{glob.host}" or glob.host == f"www.{page.host}":
        return f"{text!r} is another host", ""
    return None


def _is_here(host: str) -> bool:
    """Whether a host is one of this machine's names for itself."""
    if host in LOOPBACK_HOSTS:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _written(origin: Origin) -> str:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    port = "" if origin.port in (None, port_in_force(None, origin.scheme)) else f":{origin.port}"
    return f"{origin.scheme}://{host}{port}"


def _listed(allowed: Sequence[str]) -> str:
    """What `allowed_origins` has, in short."""
    chosen = _chosen(allowed)
    here = [_HERE] if len(chosen) < len(allowed) else []
    return "; ".join([*here, *([_some(chosen)] if chosen else [])]) or "which is empty"


def _chosen(allowed: Sequence[str]) -> Sequence[str]:
    """The origins that the configuration names: without those of development mode."""
    here = len(LOOPBACK_ORIGINS)
    return allowed[here:] if tuple(allowed[:here]) == LOOPBACK_ORIGINS else allowed


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    shown = ", ".join(text[:_SHOWN] for text in texts[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
