"""The PROXY protocol's header, versions 1 and 2: it names the client of a proxy. Sans-I/O.

The specification is haproxy's doc/proxy-protocol.txt. The header comes before all other bytes, TLS
included, so a reader must take exactly the header's bytes: `header_end` returns where it ends.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LONGEST_V1: Final = 107  # bytes with CR LF, the specification's own limit
_V2_FIXED: Final = 16
_LONGEST_V2: Final = 4_096  # addresses and extensions; the format allows 64 KiB
_V1_FAMILIES: Final = {b"TCP4": 4, b"TCP6": 6}
_V2_FAMILIES: Final = {0x1: 4, 0x2: 16}  # the bytes of an address


class ProxyHeaderError(Exception):
    """The first bytes of a proxy's connection are not a valid PROXY header."""


def header_end(received: bytes) -> int | None:
    """Return where the header ends; None while more bytes are needed to know.

    Raises:
        ProxyHeaderError: it is not a PROXY header, or it is too long.
    """
    if received.startswith(_V2):
        if len(received) < _V2_FIXED:
            return None
        end = _V2_FIXED + int.from_bytes(received[14:16])
        if end > _LONGEST_V2:
            raise ProxyHeaderError("too long")
        return end
    if received.startswith(_V1):
        end = received.find(b"\r\n", 0, _LONGEST_V1) + 2
        if end < 2 and len(received) >= _LONGEST_V1:
            raise ProxyHeaderError("too long")
        return end if end >= 2 else None
    if _V1.startswith(received) or _V2.startswith(received):
        return None
    raise ProxyHeaderError("not a PROXY header")


def parse_proxy_header(header: bytes) -> tuple[str, int] | None:
    """Return the client's address and port; None if the proxy itself is the client or knows none.

    Raises:
        ProxyHeaderError: the header is malformed.
    """
    try:
        return _parse_v2(header) if header.startswith(_V2) else _parse_v1(header)
    except (ValueError, IndexError) as error:
        raise ProxyHeaderError(str(error)) from None


def _parse_v1(header: bytes) -> tuple[str, int] | None:
    if not (header.startswith(_V1) and header.endswith(b"\r\n")):
        raise ValueError("not a PROXY header")
    family, *words = header[len(_V1) : -2].split(b" ")
    if family == b"UNKNOWN":
        return None  # the specification: ignore the rest of the line
    if family not in _V1_FAMILIES or len(words) != 4:
        raise ValueError("malformed")
    source, _destination, port, _to = (word.decode("ascii") for word in words)
    address = ip_address(source)
    if address.version != _V1_FAMILIES[family] or not port.isdigit() or int(port) > 65_535:
        raise ValueError("malformed")
    return str(address), int(port)


def _parse_v2(header: bytes) -> tuple[str, int] | None:
    version, command = header[12] >> 4, header[12] & 0xF
    if version != 2 or command > 1 or len(header) != header_end(header):
        raise ValueError("malformed")
    size = _V2_FAMILIES.get(header[13] >> 4)
    if command == 0 or size is None:
        return None  # the proxy's own health check, or a connection without IP addresses
    block = header[_V2_FIXED : _V2_FIXED + 2 * size + 4]
    if len(block) < 2 * size + 4:
        raise ValueError("malformed")
    return str(ip_address(block[:size])), int.from_bytes(block[2 * size : 2 * size + 2])
