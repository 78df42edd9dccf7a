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

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

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


_FORM: Final = re.compile(r"([a-z+]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_NUMBER: Final = re.compile("[0-9]{1,5}")
_NOT_IN_HOSTS: Final = frozenset(" @[]")


class _Parts(NamedTuple):
    """A URL in its parts, as they are written."""

    scheme: str
    hosts: str
    path: str
    query: str
    fragment: str


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
    # Not `urlsplit`: its rules for brackets are for one host, and its errors have parts of the URL.
    found = _FORM.fullmatch(url)
    if found is None:
        raise ValueError(f"it must look like one of {_FORMS}")
    parts = _Parts(*(part or "" for part in found.groups()))
    if parts.fragment:
        raise ValueError("a # in a name or a password is written %23")
    options = _options(parts.query)
    if parts.scheme == "unix":
        return _unix(parts, options)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in _SCHEMES or kind not in _KINDS:
        raise ValueError(f"it must look like one of {_FORMS}")
    return _network(parts, options, _KINDS[kind], tls=_SCHEMES[scheme])


def _options(query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        # Not a form, where a plus is a space: many passwords have one.
        plain = query.replace("+", "%2B")
        return dict(parse_qsl(plain, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        raise ValueError("what is behind the question mark is not name=value") from None


def _network(parts: _Parts, options: dict[str, str], kind: Kind, *, tls: bool) -> Endpoints:
    given, _, hosts = parts.hosts.rpartition("@")
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


def _unix(parts: _Parts, options: dict[str, str]) -> Endpoints:
    given, at, host = parts.hosts.rpartition("@")
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
        colon, port = port[:1], port[1:]
    else:
        host, colon, port = text.partition(":")
    if not host:
        raise ValueError("a host is missing; a / in a name or a password is written %2F")
    if set(host) & _NOT_IN_HOSTS or not host.isprintable() or colon not in ("", ":"):
        raise ValueError("a host cannot be read; @ in a name or a password is written %40")
    if colon and not (_NUMBER.fullmatch(port) and 0 < int(port) < 65_536):
        raise ValueError("a port is not a number from 1 to 65535")
    return Address(host, int(port) if port else default)


def _given(text: str) -> Credentials:
    username, _, password = text.partition(":")
    return _credentials_of(unquote(username), unquote(password))


def _credentials_of(username: str, password: str) -> Credentials:
    if username and not password:
        raise ValueError("a user without a password: write user:password@, or :password@")
    return Credentials(username, password)


def _database(text: str) -> int:
    if text and not _NUMBER.fullmatch(text):
        raise ValueError("the database is not a number")
    return int(text or 0)


def _check_no_more(options: Mapping[str, str]) -> None:
    if options:
        names = ", ".join(sorted(options))
        raise ValueError(f"unknown behind the question mark: {names}")
