"""The server that a command talks to: its URL and key, from options, variables or configuration.

Rule: the key of the configuration goes to the configuration's own address, and to a `--url` only if
`--config` was typed beside it. So a key never reaches a server that it does not belong to. A file
that merely lies in the directory may be somebody else's, and a variable may have the key: with such
a file the address must be one of this machine.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import click

from repeater.access.tokens.options import is_http
from repeater.cli.config import config_option, load
from repeater.cli.terminal import visible

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.config.endpoints import Endpoint

F = TypeVar("F", bound=Callable[..., Any])

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)

_url_option = click.option(
    "--url", envvar="REPEATER_URL", show_envvar=True,
    help="The URL of the server.  [default: where the configuration says that it listens]",
)  # fmt: skip
_key_option = click.option(
    "--api-key", envvar="REPEATER_API_KEY", show_envvar=True,
    help="The server's key.  [default: the configuration's]",
)  # fmt: skip


class Address(NamedTuple):
    """Where a server listens on this machine."""

    url: str
    socket: str = ""
    """The path of a Unix socket to connect to, in place of the URL's host and port."""
    host: str = ""
    """The name to ask for in place of the URL's, because `allowed_hosts` lacks that."""


class Server(NamedTuple):
    """The server that a command talks to."""

    address: Address
    api_key: str | None
    settings: Settings | None
    """The configuration of this server; None if only its URL is known."""

    def certificates(self) -> ssl.SSLContext | None:
        """What the server's certificate is proven with; None for the authorities of the system.

        On this machine the server must have the very certificate of its configuration: a
        certificate does not name the address 127.0.0.1.

        Raises:
            click.ClickException: the file cannot be read.
        """
        if self.settings is None or self.settings.tls_cert is None or not self.at_home:
            return None
        try:
            return _exactly(self.settings.tls_cert)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a certificate in PEM form"
            raise click.ClickException(f"{self.settings.tls_cert}: {reason}") from None

    @property
    def at_home(self) -> bool:
        """Whether the address is the configuration's own, on this machine."""
        return self.settings is not None and self.address == _own_address(self.settings)


def server_options(command: F) -> F:
    """Give a command `--url`, `--api-key` and `--config`, as its argument `server`."""

    @functools.wraps(command)
    def with_server(
        *args: Any, url: str | None, api_key: str | None, config_file: Path | None, **more: Any
    ) -> Any:
        return command(*args, server=find_server(url, api_key, config_file), **more)

    return cast("F", _url_option(_key_option(config_option(with_server))))


def find_server(url: str | None, api_key: str | None, config_file: Path | None) -> Server:
    """The server that the options mean. With a URL, the configuration is not read unless typed.

    Raises:
        click.ClickException: the URL is not one, the configuration is wrong, or it does not say
            where its server listens; or nobody named it, and that is on another machine.
    """
    if url is None:
        settings = load(config_file, "; or give --url and --api-key")
        if config_file is None:
            _check_found(settings)
        return Server(_own_address(settings), api_key or _key_of(settings), settings)
    if not is_http(url):
        raise click.ClickException(f"not a server's URL: {url}")
    address = Address(url.rstrip("/"))
    if config_file is None or _came_by_variable("url"):
        return Server(address, api_key, None)
    settings = load(config_file)
    return Server(address, api_key or _key_of(settings), settings)


def _check_found(settings: Settings) -> None:
    """Refuse a configuration that nobody named, if its server listens on another machine.

    Raises:
        click.ClickException: it does. A server can only listen on addresses of its own machine.
    """
    from repeater.config.sources import DEFAULT_FILE, find_config

    host = _listens_on(settings).host
    if host and find_config() == DEFAULT_FILE and not _is_here(host):
        raise click.ClickException(
            f"{DEFAULT_FILE} of this directory says {visible(host)}, which is not this machine: "
            f"give --config {DEFAULT_FILE} if you trust it, or --url"
        )


def _is_here(host: str) -> bool:
    """Whether a server on this machine could listen on this host.

    Other names than `localhost` are not looked up: whoever wrote the file may answer for them.
    """
    if host == "localhost":
        return True
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return any(_can_bind(family, address) for family, *_, address in found)


def _can_bind(family: int, address: Any) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def url_of(settings: Settings) -> str:
    """The URL by which this machine reaches the server of these settings, its first TCP address.

    Raises:
        click.ClickException: it listens on Unix sockets only, or on a port that the kernel chooses.
    """
    return _own_address(settings).url


def _listens_on(settings: Settings) -> Endpoint:
    """The first TCP address, or the first Unix socket if there is none."""
    from repeater.config.endpoints import Endpoint, parse_endpoint

    endpoints = [parse_endpoint(text) for text in settings.listen]
    endpoints = endpoints or [Endpoint(settings.host, settings.port)]
    return next((one for one in endpoints if not one.path), endpoints[0])


def _own_address(settings: Settings) -> Address:
    from repeater.access.origins import host_allowed
    from repeater.config.endpoints import Endpoint

    first = _listens_on(settings)
    name, prefix = _name_for(settings.hosts), settings.path_prefix
    if first.path:
        return Address(f"http://{name or 'localhost'}{prefix}", first.path)
    if not first.port:
        raise click.ClickException("the configuration has port 0, a free one: give --url")
    reached = Endpoint(_WILDCARDS.get(first.host, first.host), first.port)
    scheme = "http" if settings.tls_cert is None else "https"
    known = not settings.hosts or host_allowed(str(reached), settings.hosts)
    return Address(f"{scheme}://{reached}{prefix}", "", "" if known else name)


def _name_for(hosts: tuple[str, ...]) -> str:
    """A name that the first glob of `allowed_hosts` allows; empty if every name is allowed."""
    return hosts[0].replace("*", "repeater").replace("?", "a") if hosts else ""


def _key_of(settings: Settings) -> str | None:
    return None if settings.api_key is None else settings.api_key.get_secret_value()


def _came_by_variable(name: str) -> bool:
    context = click.get_current_context()
    return context.get_parameter_source(name) is click.core.ParameterSource.ENVIRONMENT


def _exactly(file: Path) -> ssl.SSLContext:
    """Trust in the first certificate of a file, and in no other.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate.
    """
    found = _CERTIFICATE.search(file.read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise ValueError("no certificate")
    context = ssl.create_default_context(cadata=found[0])
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
