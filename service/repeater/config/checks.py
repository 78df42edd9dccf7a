"""Settings that contradict each other, though each value is valid by itself.

Pure checks on options, so that the settings' model stays a list of fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path

from pydantic import BaseModel

from repeater.access.channel_rules import ChannelRules
from repeater.access.http_client import trusted_certificates
from repeater.access.origins import parse_glob, parse_host_glob
from repeater.access.tokens.options import TokenOptions
from repeater.backend.options import CallbackKind, CallbackOptions
from repeater.config.endpoints import Endpoint, is_host, parse_endpoint
from repeater.config.errors import Mistake
from repeater.options import LARGEST_COMPRESSED, ChannelOptions, NodeOptions, OptionsError

_ASKED: tuple[CallbackKind, ...] = ("subscribe", "publish", "sub_refresh")
_NO_TABLE = "names a namespace that has no table: add [namespaces.{}]"
_ACTIONS = ("subscribe", "publish", "presence", "history")


def listen_mistakes(listen: Iterable[str], host: str, dev: bool) -> Iterator[Mistake]:
    """Invalid endpoints, and in development mode endpoints that other machines can reach."""
    endpoints = []
    for text in listen:
        try:
            endpoints.append(parse_endpoint(text))
        except ValueError as error:
            yield Mistake(("listen",), str(error))
    if not is_host(host):
        yield Mistake(("host",), f"{host!r} is not an address or a name, such as 0.0.0.0 or ::1")
    for endpoint in endpoints if listen else [Endpoint(host)]:
        if dev and not endpoint.is_local:
            yield Mistake(
                ("dev",),
                f"development mode is open to everybody, so it listens on loopback only, "
                f"not on {endpoint.host}; leave --dev out, or use --host 127.0.0.1",
            )


def tls_mistakes(certificate: Path | None, key: Path | None) -> Iterator[Mistake]:
    """A certificate without its key, or a key without its certificate."""
    if (certificate is None) is not (key is None):
        missing, given = ("tls_cert", "tls_key") if key else ("tls_key", "tls_cert")
        yield Mistake((given,), f"needs {missing}")


def proxy_mistakes(networks: Iterable[str], proxy_protocol: bool) -> Iterator[Mistake]:
    """Invalid networks, and `proxy_protocol` without a proxy that may send its header."""
    names = set(networks)
    try:
        for name in sorted(names - {"unix"}):  # "unix" stands for all clients of Unix sockets
            ip_network(name)
    except ValueError as error:
        yield Mistake(("trusted_proxies",), str(error))
        return
    if proxy_protocol and not names:
        yield Mistake(("proxy_protocol",), "needs trusted_proxies")


def page_mistakes(origins: Iterable[str], hosts: Iterable[str]) -> Iterator[Mistake]:
    """Globs that no page's origin, or no host, can match."""
    readers: list[tuple[str, Iterable[str], Callable[[str], object]]] = [
        ("allowed_origins", origins, parse_glob),
        ("allowed_hosts", hosts, parse_host_glob),
    ]
    for name, texts, parse in readers:
        for text in texts:
            try:
                parse(text)
            except ValueError as error:
                yield Mistake((name,), str(error))


def node_mistakes(options: NodeOptions) -> Iterator[Mistake]:
    """Mistakes in the node's options and in those of all its channels."""
    if options.pong_timeout >= options.ping_interval:
        yield Mistake(("pong_timeout",), "must be shorter than ping_interval")
    if options.batch_limit > options.outbox_limit:
        yield Mistake(("batch_limit",), "must not be above outbox_limit")
    if set(options.private_prefix) & set(":#"):
        yield Mistake(("private_prefix",), "must not contain : or #, which have meanings")
    yield from _names(options)
    yield from _personal_names(options)
    yield from channel_mistakes(options.channel, ("channel",))
    for name, channel in options.namespaces.items():
        yield from channel_mistakes(channel, ("namespaces", name))


def _names(options: NodeOptions) -> Iterator[Mistake]:
    """Namespaces that a setting names and that have no table."""
    name = options.personal_channel_namespace
    if name and name not in options.namespaces:
        yield Mistake(
            ("personal_channel_namespace",),
            _NO_TABLE.format(name),
        )
    default = options.default_channel.removeprefix(options.private_prefix)
    name, end, _ = default.partition(":")
    if end and name not in options.namespaces:
        yield Mistake(("default_channel",), _NO_TABLE.format(name))


def _personal_names(options: NodeOptions) -> Iterator[Mistake]:
    """Personal channels that a setting gives to everybody."""
    rules = ChannelRules(options)
    for setting, names in (
        ("public_channels", options.public_channels),
        ("default_channel", {options.default_channel}),
    ):
        for name in sorted(name for name in names if rules.is_of_another(name, "")):
            yield Mistake(
                (setting,), f"cannot have {name}, which is one user's with user_personal_channel"
            )


def table_mistakes(
    table: str, make: Callable[[], TokenOptions | CallbackOptions]
) -> Iterator[Mistake]:
    """Mistakes that the options of a table find themselves, and unusable files and keys."""
    try:
        options = make()
    except OptionsError as error:
        for name, text in error.mistakes:
            yield Mistake((table, name), text)
        return
    if isinstance(options, TokenOptions):
        yield from _key_mistakes(table, options)
        name, file = "jwks_ca_file", options.jwks_ca_file
    else:
        name, file = "ca_file", options.ca_file
    try:
        trusted_certificates(file)
    except ValueError as error:
        yield Mistake((table, name), str(error))


def _key_mistakes(table: str, options: TokenOptions) -> Iterator[Mistake]:
    """Keys that cannot prove any token."""
    if not options.enabled:
        return
    from repeater.access.tokens.keys import KeyRing  # loads the cryptography only if needed

    try:
        KeyRing(options)
    except ValueError as error:  # its text names the option, and never holds the key
        yield Mistake((table,), str(error))


def callback_mistakes(options: NodeOptions, callbacks: BaseModel) -> Iterator[Mistake]:
    """Questions that a namespace leaves to the back end, but that have no URL in `callbacks`."""
    tables: dict[tuple[str, ...], ChannelOptions] = {("channel",): options.channel}
    tables |= {("namespaces", name): one for name, one in options.namespaces.items()}
    for path, channel in tables.items():
        for kind in _ASKED:
            setting = f"{kind}_proxy_enabled"
            if getattr(channel, setting) and not getattr(callbacks, f"{kind}_url"):
                yield Mistake((*path, setting), f"needs {kind}_url in [callbacks]")


def channel_mistakes(options: ChannelOptions, path: tuple[str, ...]) -> Iterator[Mistake]:
    """Mistakes in the options of one namespace; `path` is the path of its table."""
    for name in ("positioning", "recovery"):
        for verb in ("allow", "force"):
            setting = f"{verb}_{name}"
            if getattr(options, setting) and not options.history_size:
                yield Mistake((*path, setting), "needs a history_size above 0")
    if options.history_meta_ttl < options.history_ttl:
        yield Mistake((*path, "history_meta_ttl"), "must not be shorter than history_ttl")
    if options.force_push_join_leave and not options.join_leave:
        yield Mistake((*path, "force_push_join_leave"), "needs join_leave")
    if options.auto_cache_recover and options.force_recovery_mode != "cache":
        yield Mistake((*path, "auto_cache_recover"), 'needs force_recovery_mode = "cache"')
    if options.delta_publish and not options.allowed_delta_types:
        yield Mistake((*path, "delta_publish"), 'needs allowed_delta_types = ["fossil"]')
    if options.compression_min_size > LARGEST_COMPRESSED:
        text = f"must not be above {LARGEST_COMPRESSED}: longer messages are never compressed"
        yield Mistake((*path, "compression_min_size"), text)
    if options.compression_min_size and not options.compression:
        yield Mistake((*path, "compression_min_size"), "needs compression")
    for action in _ACTIONS:
        anonymous, client = f"allow_{action}_for_anonymous", f"allow_{action}_for_client"
        subscriber = getattr(options, f"allow_{action}_for_subscriber", False)
        if getattr(options, anonymous) and not getattr(options, client) and not subscriber:
            yield Mistake((*path, anonymous), f"counts only together with {client}")
