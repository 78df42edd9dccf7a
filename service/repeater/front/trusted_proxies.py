"""The client's address in a proxy's headers. Only trusted proxies are believed, in one header only.

A list of addresses is read from its end, where the nearest proxy wrote: the first address of no
trusted proxy is the client's. For example, with 10.0.0.9 trusted, the client in `6.6.6.6, 1.2.3.4,
10.0.0.9` is 1.2.3.4. The addresses to the left of it may be forged: any client can send them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGISendCallable, Scope

UNIX: Final = "unix"
"""Stands for the peer of a Unix socket, in the list of trusted proxies and as an address."""

ForwardedHeader = Literal["x-forwarded", "forwarded"]
Headers = Iterable[tuple[str, str]]

_HOPS: Final = 64
"""Entries of a list that are looked at: each costs some 10 us, and a head has room for 8,000."""


class Forwarded(msgspec.Struct, frozen=True):
    """A client's address and scheme by a request's headers; empty if they do not say."""

    address: str = ""
    scheme: str = ""


NOTHING: Final = Forwarded()


class TrustedProxies:
    """The networks of the trusted proxies. Frozen; pure."""

    def __init__(self, networks: Iterable[str], header: ForwardedHeader = "x-forwarded") -> None:
        """Take the networks, one of which may be `unix`.

        Raises:
            ValueError: an entry is not a network.
        """
        names = set(networks)
        self._unix = UNIX in names
        self._networks = [ip_network(name) for name in sorted(names - {UNIX})]
        self._header = header

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        if address == UNIX:
            return self._unix
        try:
            parsed = _plain(ip_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def forwarded(self, peer: str, headers: Headers) -> Forwarded:
        """The client by the headers of this peer's request; `NOTHING` from an untrusted peer."""
        if not self.trusts(peer):
            return NOTHING
        written = list(headers)
        if self._header == "forwarded":
            return self._of_forwarded(_values(written, "forwarded"))
        addresses = _items(_values(written, "x-forwarded-for"))
        schemes = _items(_values(written, "x-forwarded-proto"))
        found = self._nearest([_address(one) for one in addresses])
        return Forwarded((addresses and found) or "", _scheme(schemes[-1] if schemes else ""))

    def _of_forwarded(self, values: Sequence[str]) -> Forwarded:
        """Read the `Forwarded` header of RFC 7239."""
        elements = [dict(_pairs(one)) for one in _items(values)]
        if not elements:
            return NOTHING
        found = self._nearest([_address(one.get("for", "")) for one in elements])
        return Forwarded(found, _scheme(elements[-1].get("proto", "")))

    def _nearest(self, addresses: Sequence[str]) -> str:
        """The last address that is not trusted; an entry that is not an address ends the search."""
        nearest = ""
        for address in reversed(addresses):
            if not address:
                return nearest
            nearest = address
            if not self.trusts(address):
                return nearest
        return nearest


def _values(headers: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for written, value in headers if written.lower() == name]


def _items(values: Iterable[str]) -> list[str]:
    """The last items of a list header, even if it is repeated. Addresses contain no commas."""
    last = ",".join(values).rsplit(",", _HOPS)[-_HOPS:]
    return [item for one in last if (item := one.strip())]


def _pairs(element: str) -> Iterator[tuple[str, str]]:
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        yield name.strip().lower(), value.strip().strip('"')


def _address(text: str) -> str:
    """The address alone, without port, brackets or zone; empty for `unknown` and noise.

    A zone (`fe80::1%eth0`) may be any text, and means nothing on another machine.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(_plain(ip_address(text.partition("%")[0])))
    except ValueError:
        return ""


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address; an IPv4 address that a dual-stack socket wrote as IPv6 becomes IPv4 again."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _scheme(text: str) -> str:
    return text.lower() if text.lower() in ("http", "https") else ""


class ForwardedApp:
    """The application as one connection sees it. Lives as long as the connection.

    Hypercorn's own `ProxyFixMiddleware` believes the headers of every peer; this class believes
    those of trusted peers only.
    """

    def __init__(self, app: AppWrapper, peer: tuple[str, int], proxies: TrustedProxies) -> None:
        """Take the connection's peer; the headers of a request may name another client."""
        self._app = app
        self._peer = peer
        self._proxies = proxies

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """Serve one request, with the address and scheme of its client."""
        if scope["type"] != "lifespan":
            self._correct(scope)  # type: ignore[arg-type]
        await self._app(scope, receive, send, sync_spawn, call_soon)

    def _correct(self, scope: dict[str, Any]) -> None:
        address = str(self._peer[0])
        scope["client"] = self._peer[:2]
        if not self._proxies.trusts(address):
            return
        headers = (
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        found = self._proxies.forwarded(address, headers)
        if found.address:
            scope["client"] = (found.address, 0)
        if found.scheme:
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = plain + ("s" if found.scheme == "https" else "")
