"""The configuration: the only reader of the environment.

Every setting is a field of `Settings` and an environment variable `REPEATER_<NAME>`. Secrets are
`SecretStr`, so that they print as stars wherever they end up.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.api.keys import ApiKey
from service.options import ChannelOptions, NodeOptions

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DEFAULTS = NodeOptions()
_CHANNEL = ChannelOptions()


class ConfigError(Exception):
    """The configuration is wrong; the text is one line for whoever wrote it."""


class Settings(BaseSettings):
    """What a server is started with. Sizes are bytes, times seconds."""

    model_config = SettingsConfigDict(env_prefix="REPEATER_", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    dev: bool = False
    """Development mode: open to everybody, therefore on loopback only."""

    api_key: SecretStr | None = None
    """What back ends send as `X-API-Key`. Without it there is no REST API, but in dev mode."""

    allow_anonymous: bool = False
    """Whether clients without credentials may connect and subscribe."""

    allowed_origins: tuple[str, ...] = ()
    """Globs of the pages that may connect; a page of the server's own host always may."""

    default_channel: str = _DEFAULTS.default_channel
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    body_limit: int = Field(default=524_288, ge=1_024)
    """Longest REST body; half an outbox, so that one event cannot fill one."""

    head_limit: int = Field(default=16_384, ge=1_024)
    head_timeout: float = Field(default=10.0, gt=0)
    backlog: int = Field(default=4_096, ge=1)
    """Connections that the kernel holds for us while we are busy."""

    history_size: int = Field(default=_CHANNEL.history_size, ge=0)
    history_ttl: float = Field(default=_CHANNEL.history_ttl, gt=0)
    ping_interval: float = Field(default=_DEFAULTS.ping_interval, gt=0)
    pong_timeout: float = Field(default=_DEFAULTS.pong_timeout, gt=0)
    write_timeout: float = Field(default=_DEFAULTS.write_timeout, gt=0)
    publish_timeout: float = Field(default=_DEFAULTS.publish_timeout, gt=0)
    outbox_limit: int = Field(default=_DEFAULTS.outbox_limit, ge=65_536)
    shutdown_timeout: float = Field(default=_DEFAULTS.shutdown_timeout, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dev and self.host not in _LOOPBACK:
            raise ValueError(
                f"development mode is open to everybody, so it listens on loopback only, "
                f"not on {self.host}; leave --dev out, or use --host 127.0.0.1"
            )
        if self.pong_timeout >= self.ping_interval:
            raise ValueError("pong_timeout must be shorter than ping_interval")
        return self

    def node_options(self) -> NodeOptions:
        """The node's part of the configuration."""
        return NodeOptions(
            default_channel=self.default_channel,
            insecure=self.dev,
            allow_anonymous=self.allow_anonymous,
            channel=ChannelOptions(
                history_size=self.history_size,
                history_ttl=self.history_ttl,
                allow_subscribe_for_client=self.allow_anonymous,
                allow_subscribe_for_anonymous=self.allow_anonymous,
            ),
            ping_interval=self.ping_interval,
            pong_timeout=self.pong_timeout,
            write_timeout=self.write_timeout,
            publish_timeout=self.publish_timeout,
            outbox_limit=self.outbox_limit,
            shutdown_timeout=self.shutdown_timeout,
        )

    def rest_key(self) -> ApiKey:
        """Who may call the server API."""
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return ApiKey(key, insecure=self.dev)

    @property
    def origins(self) -> tuple[str, ...]:
        """The globs in force: any page in development mode."""
        return ("*",) if self.dev else self.allowed_origins


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` that are not None win over it.

    Raises:
        ConfigError: a value is wrong; one line that names the setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        raise ConfigError(_first_line(error)) from None
    except SettingsError as error:
        # Only the lists are parsed before they are validated; the text names the field.
        raise ConfigError(f"{error}: a list is written as JSON") from None


def _first_line(error: ValidationError) -> str:
    """The first mistake in words; never the value, which may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text
