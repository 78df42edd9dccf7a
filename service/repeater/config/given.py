"""Settings that a program gives: a node's options, and keywords. Nothing else is read.

For `open_server` inside another program: the file and the environment belong to that program.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from repeater.config.engine import Engine
from repeater.config.settings import ProgramSettings, Settings
from repeater.config.sources import settings_alone
from repeater.options import NodeOptions, Options


class ServerSettings(TypedDict, total=False):
    """The settings of a server that are not options of its node. `Settings` describes each."""

    host: str
    port: int
    node_name: str
    listen: Sequence[str]
    unix_mode: str
    tls_cert: Path | str
    tls_key: Path | str
    trusted_proxies: Sequence[str]
    forwarded_header: Literal["x-forwarded", "forwarded"]
    proxy_protocol: bool
    api_key: str
    api_previous_key: str
    allowed_origins: Sequence[str]
    path_prefix: str
    allowed_hosts: Sequence[str]
    metrics_token: str
    metrics_open: bool
    body_limit: int
    head_limit: int
    head_timeout: float
    backlog: int
    compression: bool
    compression_min_size: int
    data_dir: str
    engine: Engine
    durability: Literal["disk", "process"]
    history_disk_limit: int
    engine_url: str
    engine_shards: Sequence[str]
    engine_ca_file: Path | str
    engine_cert: Path | str
    engine_key: Path | str
    engine_prefix: str
    engine_timeout: float
    engine_failover: Literal["repair", "strict"]
    outbox: str


def given_settings(
    options: NodeOptions | Settings | None = None,
    /,
    *,
    own_backend: bool = False,
    **chosen: Unpack[ServerSettings],
) -> Settings:
    """The settings with a node's options, or other settings, and with the `chosen` values.

    The option `insecure` becomes the setting `dev`: open to everybody, on loopback only. With
    `own_backend` the program answers what the options leave to a back end.

    Raises:
        ConfigError: the settings are wrong; a line for each mistake names the setting.
    """
    if not isinstance(options, Settings):
        model = ProgramSettings if own_backend else Settings
        return settings_alone({**_values_of(options or NodeOptions()), **chosen}, model)
    if not chosen:
        return options
    written = {name: getattr(options, name) for name in options.model_fields_set}
    return settings_alone({**written, **chosen}, type(options))


def _values_of(options: NodeOptions) -> dict[str, Any]:
    """The options as settings: values by the names of the settings."""
    values = _fields(options)
    values["dev"] = values.pop("insecure")
    for table in ("channel", "limits"):
        values[table] = _fields(values[table])
    values["namespaces"] = {name: _fields(one) for name, one in options.namespaces.items()}
    return values


def _fields(options: Options) -> dict[str, Any]:
    return msgspec.structs.asdict(options)
