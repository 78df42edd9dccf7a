"""The address of a peer, and what of it a limit counts. The one place that asks a socket for it."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

_LOCAL: Final = "local"


def client_address(sock: socket.socket) -> str:
    """Where a connection comes from; `unix` for a Unix socket, empty for a peer that is gone."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return name[0] if isinstance(name, tuple) else ""


def address_key(address: str | None) -> str:
    """The peer as limits count it: an IPv6 one by its /64, which is one customer's."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return _LOCAL  # a Unix socket
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
