"""What an `engine_url` says: which servers, how they are found, and what they are told.

One URL has all hosts, with commas between them. The scheme says the kind: `valkey` or `redis` for
one server, with `+sentinel` for one that Sentinels know, with `+cluster` for a cluster; `valkeys`
or `rediss` for TLS; `unix` for a socket of this machine. Names and passwords are percent-encoded.

    valkey://user:password@host:6379/0
    valkey+sentinel://host1,host2:26379,host3/primary?sentinel_username=x&sentinel_password=y
    valkeys+cluster://host1,host2,host3
    unix:///run/valkey.sock?database=1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

Kind = Literal["single", "sentinel", "cluster"]

PORT: Final = 6379
"""Where a server listens unless the URL says otherwise."""

SENTINEL_PORT: Final = 26379
"""Where a Sentinel listens unless the URL says otherwise."""

_SCHEMES: Final = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_KINDS: Final[Mapping[str, Kind]] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_FORMS: Final = (
    "valkey://host:port/database, valkey+sentinel://host,host/name, valkey+cluster://host,host, "
    "unix:///path; valkeys for TLS"
)


class Address(msgspec.Struct, frozen=True):
    """Where a server listens: a host and its port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """For logs: it has no secret."""
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Credentials(msgspec.Struct, frozen=True):
    """A user and a password; both may be empty. Never shows the password."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ***)" if self else "Credentials()"

    def __bool__(self) -> bool:
        return bool(self.username or self.password)


class Endpoints(msgspec.Struct, frozen=True):
    """What an `engine_url` says. Made by `parse_url`."""

    kind: Kind
    addresses: tuple[Address, ...]
    """The server; or the Sentinels; or some servers of a cluster, of which one is enough."""
    tls: bool = False
    credentials: Credentials = Credentials()
    database: int = 0
    name: str = ""
    """The name of the primary that the Sentinels know."""
    sentinel_credentials: Credentials = Credentials()


def parse_url(url: str) -> Endpoints:
    """Read an `engine_url`.

    Raises:
        ValueError: it cannot be used; the text says why, and has no part of the URL that may be a
            secret.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        if not url.partition("?")[2]:
            options = {}
        else:
            raise ValueError("what is behind the question mark cannot be read") from None
        parts = urlsplit(url)
    if parts.fragment:
        raise ValueError("a # in a name or a password is written %23")
    if parts.scheme == "unix":
        return _unix(parts, options)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in _SCHEMES or kind not in _KINDS:
        raise ValueError(f"it must look like one of {_FORMS}")
    return _network(parts, options, _KINDS[kind], tls=_SCHEMES[scheme])


def _network(parts: SplitResult, options: dict[str, str], kind: Kind, *, tls: bool) -> Endpoints:
    given, _, hosts = parts.netloc.rpartition("@")
    default = SENTINEL_PORT if kind == "sentinel" else PORT
    addresses = tuple(_address(one, default) for one in hosts.split(","))
    if kind == "single" and len(addresses) > 1:
        raise ValueError("several hosts are Sentinels (valkey+sentinel) or a cluster (+cluster)")
    path = parts.path.strip("/")
    name, database = "", path
    if kind == "sentinel":
        name, _, database = path.partition("/")
        if not name:
            raise ValueError("behind the Sentinels' hosts comes /name, the name of the primary")
    if kind == "cluster" and (database or "database" in options):
        raise ValueError("a cluster has no database numbers")
    sentinel = _credentials_of(
        options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
    )
    if sentinel and kind != "sentinel":
        raise ValueError("sentinel_username and sentinel_password go with valkey+sentinel only")
    number = _database(options.pop("database", database))
    _check_no_more(options)
    return Endpoints(
        kind=kind,
        addresses=addresses,
        tls=tls,
        credentials=_given(given),
        database=number,
        name=unquote(name),
        sentinel_credentials=sentinel,
    )


def _unix(parts: SplitResult, options: dict[str, str]) -> Endpoints:
    given, at, host = parts.netloc.rpartition("@")
    if host or not parts.path.strip("/"):
        raise ValueError("a socket of this machine is unix:///path, with three slashes")
    number = _database(options.pop("database", ""))
    _check_no_more(options)
    return Endpoints(
        kind="single",
        addresses=(Address(path=unquote(parts.path)),),
        credentials=_given(given if at else ""),
        database=number,
    )


def _address(text: str, default: int) -> Address:
    """Read `host`, `host:port` or `[address]:port`."""
    host, bracket, port = text.partition("]")
    if bracket:
        host = host.removeprefix("[")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError("a host is missing")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError(f"the port of {host} is no number from 1 to 65535")
    return Address(host, int(port) if port else default)


def _given(text: str) -> Credentials:
    username, _, password = text.partition(":")
    return _credentials_of(unquote(username), unquote(password))


def _credentials_of(username: str, password: str) -> Credentials:
    if username and not password:
        raise ValueError("a user without a password: write user:password@, or :password@")
    return Credentials(username, password)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal()):
        raise ValueError("the database is a number")
    return int(text or 0)


def _check_no_more(options: Mapping[str, str]) -> None:
    if options:
        names = ", ".join(sorted(options))
        raise ValueError(f"unknown behind the question mark: {names}")
