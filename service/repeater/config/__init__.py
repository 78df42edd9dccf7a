"""The configuration: the only reader of the environment.

Every setting is a field of `Settings`, a key of `repeater.toml` and a variable `REPEATER_<NAME>`.
The settings of a node are not written twice: they are made of the options in repeater/options.py.
Secrets are `SecretStr`, so that a secret prints as stars even where somebody prints the settings.
"""

from repeater.config.current import CurrentSettings
from repeater.config.errors import ConfigError
from repeater.config.given import ServerSettings, given_settings
from repeater.config.inherited import (
    WorkerPlace,
    inherited_descriptors,
    service_manager,
    worker_place,
    worker_variables,
)
from repeater.config.reload import Changes, reloadable, with_live_of
from repeater.config.settings import ProgramSettings, Settings, TokenSettings
from repeater.config.sources import find_config, load_settings

__all__ = [
    "Changes",
    "ConfigError",
    "CurrentSettings",
    "ProgramSettings",
    "ServerSettings",
    "Settings",
    "TokenSettings",
    "WorkerPlace",
    "find_config",
    "given_settings",
    "inherited_descriptors",
    "load_settings",
    "reloadable",
    "service_manager",
    "with_live_of",
    "worker_place",
    "worker_variables",
]
