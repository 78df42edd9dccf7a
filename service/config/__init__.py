"""The configuration: the only reader of the environment.

Every setting is a field of `Settings`, a key of `repeater.toml` and a variable `REPEATER_<NAME>`;
what a node's options say is written once, in service/options.py. Secrets are `SecretStr`, so that
they print as stars wherever they end up.
"""

from service.config.current import CurrentSettings
from service.config.errors import ConfigError
from service.config.inherited import inherited_descriptors
from service.config.reload import Changes, reloadable, with_live_of
from service.config.settings import Settings, TokenSettings
from service.config.sources import find_config, load_settings

__all__ = [
    "Changes",
    "ConfigError",
    "CurrentSettings",
    "Settings",
    "TokenSettings",
    "find_config",
    "inherited_descriptors",
    "load_settings",
    "reloadable",
    "with_live_of",
]
