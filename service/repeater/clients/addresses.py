"""The address of a peer, and the part of it that limits count. No other module asks a socket."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

_LOCAL: Final = "local"


def client_address(sock: socket.socket) -> str:
    """The peer's address: empty for a peer that is gone, and for a Unix socket."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return name[0] if isinstance(name, tuple) else ""


def address_key(address: str | None) -> str:
    """The name under which limits count an address: an IPv6 address by its /64.

    A provider gives each customer a /64, so all addresses in one /64 are the same customer.
    """
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return _LOCAL  # a Unix socket
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
