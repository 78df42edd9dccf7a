"""The settings, each once: to add one, add a field here or an option in repeater/options.py.

The type of a field says how its value is read. Its docstring describes the setting, also on the
page docs/configuration.md. `LIVE` marks a setting that a running server can apply. A field whose
type is a model is a table of the file.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from repeater.access.origins import LOOPBACK_HOSTS, LOOPBACK_ORIGINS, parse_host_glob
from repeater.access.tokens.options import TokenOptions
from repeater.api.keys import ApiKey
from repeater.backend.options import CallbackOptions
from repeater.config.checks import (
    callback_mistakes,
    listen_mistakes,
    node_mistakes,
    page_mistakes,
    proxy_mistakes,
    table_mistakes,
    tls_mistakes,
)
from repeater.config.engine import EngineSettings
from repeater.config.errors import Mistake, MistakesError
from repeater.config.fields import (
    LIVE,
    HeaderSecret,
    Integer,
    NamespaceName,
    PathPrefix,
    Seconds,
    Texts,
    Workers,
    options_of,
    settings_of,
    unless_empty,
)
from repeater.config.outgoing import OutgoingSettings
from repeater.options import LARGEST_COMPRESSED, ChannelOptions, LimitOptions, NodeOptions

# A node reads these options each time it needs them; the others are built into running parts.
_LIVE = (
    "allow_anonymous",
    "allow_guest_tokens",
    "channel_limit",
    "channel_name_limit",
    "close_timeout",
    "connection_log_limit",
    "default_channel",
    "denial_limit",
    "expired_close_delay",
    "expiry_grace",
    "history_limit",
    "outbox_limit",
    "personal_channel_namespace",
    "private_prefix",
    "public_channels",
    "publish_timeout",
    "recovery_limit",
    "shutdown_group",
    "shutdown_pause",
    "shutdown_timeout",
    "stale_timeout",
    "user_personal_channel",
)
# Least values other than "above zero".
_LEAST = {
    "history_size": 0,
    "compression_min_size": 0,
    "connection_log_limit": 0,
    "history_limit": 0,
    "expired_close_delay": 0,
    "event_delay": 0,
    "hmac_previous_secret_key_valid_until": 0,
    "leeway": 0,
    "shutdown_pause": 0,
    "message_limit": 1_024,
    "outbox_limit": 65_536,
}


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Base(BaseSettings):
    title: ClassVar[str] = "Clients and channels"

    model_config = SettingsConfigDict(
        env_prefix="REPEATER_",
        env_nested_delimiter="__",
        # Without JSON: the types of lists read texts, and each setting of a table has a variable.
        enable_decoding=False,
        extra="forbid",
        frozen=True,
    )


if TYPE_CHECKING:
    # For a type checker these classes have no fields; `node_options()` returns typed options.
    ChannelSettings = Table
    LimitSettings = Table
    TokenSettings = Table
    CallbackSettings = Table
    NodeSettings = _Base
else:
    ChannelSettings = settings_of(ChannelOptions, Table, least=_LEAST)
    LimitSettings = settings_of(
        LimitOptions,
        Table,
        least=dict.fromkeys(LimitOptions.__struct_fields__, 0),
    )
    TokenSettings = settings_of(TokenOptions, Table, least=_LEAST)
    CallbackSettings = settings_of(CallbackOptions, Table, least=_LEAST)
    NodeSettings = settings_of(
        NodeOptions,
        _Base,
        leave_out={"insecure", "channel", "namespaces", "limits"},
        live=_LIVE,
        least=_LEAST,
    )


class Settings(EngineSettings, OutgoingSettings, NodeSettings):
    """The settings of a server. Sizes are bytes, times seconds.

    This class reads neither file nor environment: `Settings(port=0)` has the defaults, except for
    the port. `load_settings` reads both. An extension (`repeater/config/extension.py`) adds its
    own settings in a subclass.
    """

    own_backend: ClassVar[bool] = False
    """Whether a program answers the questions that namespaces leave to a back end."""

    title: ClassVar[str] = "Server"
    """The title above the settings of this class in the documentation."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""

    port: Integer = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 for a free one."""

    node_name: str = Field(default="", max_length=255)
    """The server's name for the application (docs/callbacks.md) and for other nodes. No other
    server of the application may have it. Empty for the host's name with the port, `web-1_8000`."""

    listen: Texts = ()
    """Where to listen instead of `host` and `port`: any of `host:port`, `[ipv6]:port` and
    `unix:/path`. Sockets from systemd come first, and replace `host` and `port` too."""

    unix_mode: str = Field(default="0660", pattern="^0?[0-7]{3}$")
    """Who may connect to a Unix socket: the permissions of its file, octal."""

    tls_cert: Annotated[Path | None, BeforeValidator(unless_empty)] = None
    """Certificate with its chain, PEM. With a certificate, every TCP listener speaks TLS. SIGHUP
    reads the file again."""

    tls_key: Annotated[Path | None, BeforeValidator(unless_empty)] = None
    """The certificate's key, PEM, without a password."""

    trusted_proxies: Texts = ()
    """Addresses and networks of the proxies in front, and `unix` for Unix sockets. Only
    these proxies may tell the server who the client is."""

    forwarded_header: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """The headers that these proxies set, and must not pass on from strangers: `X-Forwarded-For`
    and `X-Forwarded-Proto`, or `Forwarded`."""

    proxy_protocol: bool = False
    """Whether connections of trusted proxies begin with a PROXY header (version 1 or 2)."""

    dev: bool = False
    """Development mode: the server is open to everybody, and therefore listens on loopback only."""

    api_key: Annotated[HeaderSecret, LIVE] = None
    """The key that back ends send as `X-API-Key`. Without a key the REST API is closed, except in
    development mode."""

    api_previous_key: Annotated[HeaderSecret, LIVE] = None
    """The old key, also accepted while back ends change to the new one."""

    allowed_origins: Annotated[Texts, LIVE] = ()
    """Globs of the origins whose pages may connect: a scheme, a host and, unless it is the scheme's
    default, a port, as in `https://*.example.com` or `http://localhost:*`. A page of the server's
    own host always may. `*` lets every page in, but such a page gets no cookies accepted. In
    development mode pages of this machine may connect, too."""

    path_prefix: PathPrefix = ""
    """The path under which the whole server is, as in `/realtime`: `/realtime/ws`,
    `/realtime/api/publish`, `/realtime/health`, every page. All other paths are 404. Empty for a
    server at `/`, and for a proxy that takes the prefix off itself (docs/deployment.md)."""

    allowed_hosts: Annotated[Texts, LIVE] = ()
    """Globs of the names by which clients reach this server, as in `www.example.com`, without a
    port. A request whose `Host` is another gets 421, health checks included. Empty for any name;
    in development mode `localhost`, `127.0.0.1` and `::1` are allowed, and these names as well."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    """The lowest level that is logged. `info` has a line for each connection that begins or ends,
    up to `connection_log_limit`, and no lines for messages."""

    log_format: Annotated[Literal["console", "json"], LIVE] = "console"
    """`console` for people; `json` for machines: one object in each line, times in UTC."""

    metrics_token: Annotated[HeaderSecret, LIVE] = None
    """The token that a scraper sends to `/metrics` as `Authorization: Bearer`. The API key opens
    `/metrics` too; with this token, the scraper does not need the API key."""

    metrics_open: Annotated[bool, LIVE] = False
    """Whether `/metrics` is open to everybody who can reach the port, as in development mode."""

    body_limit: Integer = Field(default=524_288, ge=1_024)
    """Longest body of a REST request. The default is half of an outbox, so that one event cannot
    fill an outbox."""

    head_limit: Integer = Field(default=16_384, ge=1_024)
    """Longest head of an HTTP request."""

    head_timeout: Seconds = Field(default=10.0, gt=0)
    """How long a connection may take at most to send the head of a request."""

    backlog: Integer = Field(default=4_096, ge=1)
    """Most connections that wait in the kernel while the server is busy."""

    compression: Annotated[bool, LIVE] = False
    """Whether WebSockets that offer permessage-deflate get compressed messages, and may send them
    (docs/transports.md). A message is compressed once for all who get it: this costs CPU for each
    event, not for each subscriber, and no memory for a connection. After a reload it holds for new
    connections, and `compression_min_size` too."""

    compression_min_size: Annotated[Integer, LIVE] = Field(default=256, ge=1, le=LARGEST_COMPRESSED)
    """Length of the shortest message that is compressed; messages above 64 KiB never are. From some
    256 bytes on, compression saves a quarter of a packet with its headers, and takes 10 us of CPU
    for an event."""

    workers: Workers = 1
    """Processes that serve the clients, each on a core of its own; `"auto"` for as many as there
    are CPUs for this server. From two on, one more process supervises them and holds what they
    share."""

    worker_timeout: Seconds = Field(default=10.0, gt=0)
    """How long a worker may be silent before it is killed and replaced."""

    channel: Annotated[ChannelSettings, LIVE] = ChannelSettings()
    """The options of channels without a namespace. `allow_anonymous` opens these channels to
    subscribers, unless this table says who may subscribe."""

    namespaces: Annotated[dict[NamespaceName, ChannelSettings], LIVE] = Field(default_factory=dict)
    """The options of the channels `<namespace>:...`, which inherit nothing from `[channel]`.
    Channels of any other namespace are unknown (error 102)."""

    limits: Annotated[LimitSettings, LIVE] = LimitSettings()
    """How much clients may use; 0 for no limit."""

    token: Annotated[TokenSettings, LIVE] = TokenSettings()
    """How connection tokens are proven, and subscription tokens if they have no table."""

    subscription_token: Annotated[TokenSettings | None, LIVE] = None
    """How subscription tokens are proven. Without this table, `[token]` is for them too."""

    callbacks: CallbackSettings = CallbackSettings()
    """Which questions a back end is asked, and which events it is told (docs/callbacks.md)."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone."""
        # `load_settings` reads the other sources itself, so that errors can name them.
        return (init_settings,)

    @model_validator(mode="after")
    def _open_to_anonymous(self) -> Self:
        """Let `allow_anonymous` alone be enough for a public feed."""
        names = ("allow_subscribe_for_client", "allow_subscribe_for_anonymous")
        opened_up = self.node_options().allow_anonymous
        if opened_up and not self.channel.model_fields_set & set(names):
            # The model is frozen for other code; a validator may still set a field.
            self.__dict__["channel"] = self.channel.model_copy(update=dict.fromkeys(names, True))
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        mistakes = list(self.mistakes())
        if mistakes:
            raise MistakesError(mistakes)
        return self

    def mistakes(self) -> Iterator[Mistake]:
        """Settings that contradict each other or are unusable. Extensions add their own checks."""
        yield from listen_mistakes(self.listen, self.host, self.dev)
        yield from tls_mistakes(self.tls_cert, self.tls_key)
        yield from proxy_mistakes(self.trusted_proxies, self.proxy_protocol)
        yield from page_mistakes(self.allowed_origins, self.allowed_hosts)
        yield from node_mistakes(self.node_options())
        tables: dict[str, Callable[[], TokenOptions | CallbackOptions]] = {
            "token": self.token_options,
            "callbacks": self.callback_options,
        }
        if self.subscription_token is not None:
            tables["subscription_token"] = self.subscription_token_options
        for name, options in tables.items():
            yield from table_mistakes(name, options)
        if not self.own_backend:
            yield from callback_mistakes(self.node_options(), self.callbacks)
        yield from self.engine_mistakes()
        yield from self.outgoing_mistakes()
        over_nodes = self.node_options().limits.scope == "cluster"
        if over_nodes and self.engine_in_force != "valkey":
            yield Mistake(("limits", "scope"), 'needs the engine "valkey", which nodes share')
        if self.api_previous_key and not self.api_key:
            yield Mistake(("api_previous_key",), "needs api_key")

    def node_options(self) -> NodeOptions:
        """The node's part of the configuration. Extensions add the options that they need."""
        return options_of(
            self,
            NodeOptions,
            insecure=self.dev,
            channel=options_of(self.channel, ChannelOptions),
            limits=options_of(self.limits, LimitOptions),
            namespaces={
                name: options_of(table, ChannelOptions) for name, table in self.namespaces.items()
            },
        )

    @property
    def node(self) -> str:
        """The server's name in force."""
        return self.node_name or f"{platform.node()}_{','.join(self.listen) or self.port}"

    def token_options(self) -> TokenOptions:
        """How connection tokens are proven."""
        return options_of(self.token, TokenOptions)

    def subscription_token_options(self) -> TokenOptions:
        """How subscription tokens are proven: as connection tokens, unless they have a table."""
        return options_of(self.subscription_token or self.token, TokenOptions)

    def rest_key(self) -> ApiKey:
        """Who may call the server API."""
        return ApiKey(self.api_keys, insecure=self.dev)

    def callback_options(self) -> CallbackOptions:
        """Which questions a back end is asked, and which events it is told."""
        return options_of(self.callbacks, CallbackOptions)

    @property
    def api_keys(self) -> tuple[bytes, ...]:
        """Every key that opens the REST API, in the clear; without keys the API is closed."""
        keys = (self.api_key, self.api_previous_key)
        return tuple(key.get_secret_value().encode() for key in keys if key is not None)

    @property
    def origins(self) -> tuple[str, ...]:
        """The globs in force of the pages that may connect."""
        return _origins_in_force(self.allowed_origins, self.dev)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The globs in force of the hosts that requests may be for; empty for any host."""
        return _hosts_in_force(self.allowed_hosts, self.dev)


class ProgramSettings(Settings):
    """The settings of a server whose program answers the questions itself (`backend=`).

    So a namespace may have `subscribe_proxy_enabled` and its like without a URL in `[callbacks]`:
    `load_settings(None, ProgramSettings)`.
    """

    own_backend: ClassVar[bool] = True


# Cached, because each connection asks for both.
@lru_cache(8)
def _origins_in_force(allowed: tuple[str, ...], dev: bool) -> tuple[str, ...]:
    return (*LOOPBACK_ORIGINS, *allowed) if dev else allowed


@lru_cache(8)
def _hosts_in_force(allowed: tuple[str, ...], dev: bool) -> tuple[str, ...]:
    hosts = tuple(map(parse_host_glob, allowed))
    return (*LOOPBACK_HOSTS, *hosts) if dev else hosts
