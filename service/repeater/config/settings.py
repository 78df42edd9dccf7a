"""The settings, each once: to add one, add a field here or an option in repeater/options.py.

A field's type says how it is read, its docstring what it is for (the documentation is made of
it), `LIVE` that a running server can take it over. A field that is a model is a table of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

from repeater.access.tokens.options import TokenOptions
from repeater.api.keys import ApiKey
from repeater.backend.options import CallbackOptions
from repeater.config.checks import (
    callback_mistakes,
    listen_mistakes,
    node_mistakes,
    proxy_mistakes,
    table_mistakes,
    tls_mistakes,
)
from repeater.config.errors import Mistake, MistakesError
from repeater.config.fields import (
    LIVE,
    Integer,
    NamespaceName,
    Seconds,
    Secret,
    Texts,
    options_of,
    settings_of,
    unless_empty,
)
from repeater.options import ChannelOptions, LimitOptions, NodeOptions

# What a node reads from its options whenever it needs it; the rest is built into running parts.
_LIVE = (
    "allow_anonymous",
    "channel_limit",
    "channel_name_limit",
    "close_timeout",
    "connection_log_limit",
    "default_channel",
    "denial_limit",
    "expired_close_delay",
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
    "connection_log_limit": 0,
    "history_limit": 0,
    "expired_close_delay": 0,
    "event_delay": 0,
    "hmac_previous_secret_key_valid_until": 0,
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
        # Lists are read by their types, and a table has a variable for each of its settings.
        enable_decoding=False,
        extra="forbid",
        frozen=True,
    )


if TYPE_CHECKING:
    # To a type checker, these have no fields; `node_options()` is typed.
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


class Settings(NodeSettings):
    """What a server is started with. Sizes are bytes, times seconds.

    Reads nothing by itself: `Settings(port=0)` is the defaults but for the port. Use
    `load_settings` for file and environment. An extension (`repeater/config/extension.py`) adds
    its own settings in a class below this one.
    """

    title: ClassVar[str] = "Server"
    """Stands above the settings of this class in the documentation."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""

    port: Integer = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 for a free one."""

    listen: Texts = ()
    """Where to listen instead of `host` and `port`: any of `host:port`, `[ipv6]:port` and
    `unix:/path`. Sockets that systemd hands over come first, and do for `host` and `port`, too."""

    unix_mode: str = Field(default="0660", pattern="^0?[0-7]{3}$")
    """Who may connect to a Unix socket: the permissions of its file, octal."""

    tls_cert: Annotated[Path | None, BeforeValidator(unless_empty)] = None
    """Certificate with its chain, PEM: every TCP listener speaks TLS. Read again at a SIGHUP."""

    tls_key: Annotated[Path | None, BeforeValidator(unless_empty)] = None
    """The certificate's key, PEM, without a password."""

    trusted_proxies: Texts = ()
    """Addresses and networks of the proxies in front, and `unix` for Unix sockets. Their word on
    who the client is counts, and nobody else's."""

    forwarded_header: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """What these proxies set, and must not pass on from strangers: `X-Forwarded-For` and
    `X-Forwarded-Proto`, or `Forwarded`."""

    proxy_protocol: bool = False
    """Whether connections of trusted proxies begin with a PROXY header (version 1 or 2)."""

    dev: bool = False
    """Development mode: open to everybody, therefore on loopback only."""

    api_key: Annotated[Secret, LIVE] = None
    """What back ends send as `X-API-Key`. Without it there is no REST API, but in dev mode."""

    api_previous_key: Annotated[Secret, LIVE] = None
    """Also accepted, while the key is being changed."""

    allowed_origins: Annotated[Texts, LIVE] = ()
    """Globs of the pages that may connect; a page of the server's own host always may."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    """The least that is logged. `info` has a line for each connection that comes or goes, up to
    `connection_log_limit`, and none for messages."""

    log_format: Annotated[Literal["console", "json"], LIVE] = "console"
    """`console` for people; `json` for machines: an object a line, times in UTC."""

    metrics_token: Annotated[Secret, LIVE] = None
    """What a scraper sends to `/metrics` as `Authorization: Bearer`, so that it need not have
    the API key, which opens it too."""

    metrics_open: Annotated[bool, LIVE] = False
    """Whether `/metrics` is open to everybody who reaches the port, as in development mode."""

    body_limit: Integer = Field(default=524_288, ge=1_024)
    """Longest REST body; half an outbox, so that one event cannot fill one."""

    head_limit: Integer = Field(default=16_384, ge=1_024)
    """Longest head of an HTTP request."""

    head_timeout: Seconds = Field(default=10.0, gt=0)
    """How long a connection may take to send one."""

    backlog: Integer = Field(default=4_096, ge=1)
    """Connections that the kernel holds for us while we are busy."""

    channel: Annotated[ChannelSettings, LIVE] = ChannelSettings()
    """What holds in channels without a namespace. `allow_anonymous` opens them to subscribers
    unless this table says who may subscribe."""

    namespaces: Annotated[dict[NamespaceName, ChannelSettings], LIVE] = Field(default_factory=dict)
    """What holds in the channels `<namespace>:...`, which inherit nothing from `[channel]`; any
    other namespace is unknown (102)."""

    limits: Annotated[LimitSettings, LIVE] = LimitSettings()
    """How much clients may take; 0 is no limit."""

    token: Annotated[TokenSettings, LIVE] = TokenSettings()
    """How connection tokens are proven, and subscription tokens unless they have a table."""

    subscription_token: Annotated[TokenSettings | None, LIVE] = None
    """How subscription tokens are proven, if not by `[token]`."""

    data_dir: str = Field(default=".repeater", min_length=1)
    """Where blocked users and revoked tokens are kept across restarts, if this is set; and where
    the comments application keeps its SQLite file, and its secret in development mode."""

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
        """What is given; `load_settings` asks the other sources itself, to name them in errors."""
        return (init_settings,)

    @model_validator(mode="after")
    def _open_to_anonymous(self) -> Self:
        """`allow_anonymous` alone is enough for a public feed."""
        names = ("allow_subscribe_for_client", "allow_subscribe_for_anonymous")
        opened_up = self.node_options().allow_anonymous
        if opened_up and not self.channel.model_fields_set & set(names):
            # Frozen for everybody else.
            self.__dict__["channel"] = self.channel.model_copy(update=dict.fromkeys(names, True))
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        mistakes = list(self.mistakes())
        if mistakes:
            raise MistakesError(mistakes)
        return self

    def mistakes(self) -> Iterator[Mistake]:
        """What does not go together. An extension's settings add theirs."""
        yield from listen_mistakes(self.listen, self.host, self.dev)
        yield from tls_mistakes(self.tls_cert, self.tls_key)
        yield from proxy_mistakes(self.trusted_proxies, self.proxy_protocol)
        yield from node_mistakes(self.node_options())
        tables: dict[str, Callable[[], TokenOptions | CallbackOptions]] = {
            "token": self.token_options,
            "callbacks": self.callback_options,
        }
        if self.subscription_token is not None:
            tables["subscription_token"] = self.subscription_token_options
        for name, options in tables.items():
            yield from table_mistakes(name, options)
        yield from callback_mistakes(self.node_options(), self.callbacks)
        if self.api_previous_key and not self.api_key:
            yield Mistake(("api_previous_key",), "needs api_key")

    def node_options(self) -> NodeOptions:
        """The node's part of the configuration. An extension's settings add what it needs."""
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
    def kept_in(self) -> Path | None:
        """Where the node may keep what outlives it; None where nobody chose a place."""
        return Path(self.data_dir) if "data_dir" in self.model_fields_set else None

    def token_options(self) -> TokenOptions:
        """How connection tokens are proven."""
        return options_of(self.token, TokenOptions)

    def subscription_token_options(self) -> TokenOptions:
        """How subscription tokens are proven: as the others, unless they have a table."""
        return options_of(self.subscription_token or self.token, TokenOptions)

    def rest_key(self) -> ApiKey:
        """Who may call the server API."""
        return ApiKey(self.api_keys, insecure=self.dev)

    def callback_options(self) -> CallbackOptions:
        """Which questions a back end is asked, and which events it is told."""
        return options_of(self.callbacks, CallbackOptions)

    @property
    def api_keys(self) -> tuple[bytes, ...]:
        """Every key that opens the REST API, in the clear; none closes it."""
        keys = (self.api_key, self.api_previous_key)
        return tuple(key.get_secret_value().encode() for key in keys if key is not None)

    @property
    def origins(self) -> tuple[str, ...]:
        """The globs in force: any page in development mode."""
        return ("*",) if self.dev else self.allowed_origins
