"""Peers' addresses as limits count them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

_LOCAL: Final = "local"


def party_of(peer: str) -> str:
    """The address of a peer with its port, as limits count it; empty for a Unix socket's."""
    host = peer.rpartition(":")[0] if peer.count(":") == 1 or "]:" in peer else peer
    key = address_key(host.strip("[]"))
    return "" if key == _LOCAL else f"address {key}"


@lru_cache(1_024)
def address_key(address: str | None) -> str:
    """The peer as limits count it: an IPv6 one by its /64, which is one customer's."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return _LOCAL  # a Unix socket
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
