"""The addresses to listen on, as text: `host:port`, `[ipv6]:port` or `unix:/path`. No I/O."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

import msgspec

_UNIX: Final = "unix:"
_NAME_LIMIT: Final = 253  # characters of a DNS name (RFC 1035)
_NOT_HOST: Final = re.compile(r"[\s/@\[\]?#*,\x00-\x1f]")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Endpoint(msgspec.Struct, frozen=True):
    """A host with its port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the endpoint."""
        return bool(self.path) or self.host in _LOOPBACK

    def __str__(self) -> str:
        if self.path:
            return _UNIX + self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Read one endpoint.

    Raises:
        ValueError: the text is not an endpoint; the error shows the right form.
    """
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if not path or "\0" in path:
            raise ValueError(f"{text!r} has no path; write unix:/run/repeater.sock")
        return Endpoint(path=path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdigit() else 65_536
    if not colon or number > 65_535 or bracketed != (":" in bare) or not is_host(bare):
        raise ValueError(f"{text!r} is not host:port, [ipv6]:port or unix:/path")
    return Endpoint(bare, number)


def is_host(text: str) -> bool:
    """Whether this can be an address or a name to listen on, IPv6 without brackets."""
    if ":" in text:
        try:
            IPv6Address(text)
        except ValueError:
            return False
        return True
    return bool(text) and len(text) <= _NAME_LIMIT and not _NOT_HOST.search(text)
