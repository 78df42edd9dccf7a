"""Where settings come from: the file, then the environment, then the command line.

pydantic-settings reads the first two. They are merged here rather than by it, so that an error can
say where its setting was written. No line of an error holds a value: it may be a secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from repeater.config.errors import ConfigError, MistakesError
from repeater.config.settings import Settings
from repeater.config.tables import SettingPath, leaves_of, nearest

PREFIX: Final = "REPEATER_"
DELIMITER: Final = "__"
DEFAULT_FILE: Final = Path("repeater.toml")
# Variables of the command line that are no settings.
OTHER_VARIABLES: Final = frozenset({"REPEATER_CONFIG", "REPEATER_URL"})


def load_settings(config: Path | str | None = None, /, **overrides: object) -> Settings:
    """Read the file (see `find_config`) and the environment; `overrides` win, but for None.

    Raises:
        ConfigError: a line for each mistake, with its file or variable and its setting.
    """
    file = find_config(config)
    sources = _Sources(file, {name: one for name, one in overrides.items() if one is not None})
    lines = [*sources.unknown_variables(), *sources.unknown_at_the_top()]
    try:
        settings = Settings(**sources.merged())
    except ValidationError as error:
        lines += sources.lines(error)
    else:
        if not lines:
            return settings
    raise ConfigError(*lines)


def find_config(config: Path | str | None = None) -> Path | None:
    """The file to read: this one, that of REPEATER_CONFIG, or `./repeater.toml` if it exists."""
    named = config or os.environ.get("REPEATER_CONFIG")
    if named:
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def variable_of(path: SettingPath) -> str:
    """The variable of a setting: REPEATER_CHANNEL__HISTORY_SIZE."""
    return PREFIX + DELIMITER.join(path).upper()


class _Sources:
    """What was written where, while one configuration is being read."""

    def __init__(self, file: Path | None, overrides: dict[str, object]) -> None:
        self._file = file
        self._written = _read(file) if file else {}
        self._variables = {name.upper() for name in os.environ if _is_ours(name)}
        self._environment: dict[str, Any] = EnvSettingsSource(Settings)()
        self._overrides = overrides

    def merged(self) -> dict[str, Any]:
        """What `Settings` is made of, without the names that it has not."""
        all_of_it = _merge(_merge(self._written, self._environment), self._overrides)
        return {name: one for name, one in all_of_it.items() if name in Settings.model_fields}

    def unknown_variables(self) -> Iterator[str]:
        """Variables that begin as ours do and belong to no setting."""
        for variable in sorted(self._variables - OTHER_VARIABLES):
            path = tuple(variable.removeprefix(PREFIX).lower().split(DELIMITER))
            inside_a_leaf = len(path) > 1 and path[0] in leaves_of(Settings)
            if inside_a_leaf or path[0] not in Settings.model_fields:
                yield self._unknown(path)

    def unknown_at_the_top(self) -> Iterator[str]:
        """Unknown names of the file or the command line; pydantic finds those in tables."""
        for name in [*self._written, *self._overrides]:
            if name not in Settings.model_fields:
                yield self._unknown((name,))

    def lines(self, error: ValidationError) -> Iterator[str]:
        """One line for each mistake."""
        for one in error.errors(include_url=False, include_input=False):
            cause = one.get("ctx", {}).get("error")
            path = tuple(str(part) for part in one["loc"] if part != "[key]")
            if isinstance(cause, MistakesError):
                yield from (f"{self._where(place)}: {text}" for place, text in cause.mistakes)
            elif one["type"] == "extra_forbidden":
                yield self._unknown(path)
            else:
                yield f"{self._where(path)}: {self._text(path, one)}"

    def _text(self, path: SettingPath, error: ErrorDetails) -> str:
        if error["type"] in ("model_type", "dict_type"):
            variable = variable_of(path)
            more = f"; its settings are {variable}{DELIMITER}<NAME>"
            return f"is a table{more if variable in self._variables else ''}"
        text = error["msg"].removeprefix("Value error, ")
        return text.replace("Input should", "must").replace("String should", "must")

    def _unknown(self, path: SettingPath) -> str:
        where = self._where(path)
        near = nearest(path, Settings)
        if near is None:
            return f"{where}: unknown setting"
        if where in self._variables:
            return f"{where}: unknown setting; did you mean {variable_of(near)}?"
        name = near[-1] if near[:-1] == path[:-1] else ".".join(near)
        return f"{where}: unknown setting; did you mean {name}?"

    def _where(self, path: SettingPath) -> str:
        """The variable, or the file and the setting's name, or the name alone."""
        name = ".".join(path)
        if path and path[0] in self._overrides:
            return name
        for end in range(len(path), 0, -1):
            if variable_of(path[:end]) in self._variables:
                return variable_of(path[:end])
        if self._file is not None and _holds(self._written, path):
            return f"{self._file}: {name}"
        return name


def _read(file: Path) -> dict[str, Any]:
    """The file's contents.

    Raises:
        ConfigError: it is missing, unreadable or no TOML.
    """
    try:
        with file.open("rb"):
            pass  # pydantic-settings takes a missing file for an empty one
        return TomlConfigSettingsSource(Settings, file)()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: must be UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _is_ours(variable: str) -> bool:
    return variable.upper().startswith(PREFIX)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both; what is in `above` wins, table by table."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            both[name] = _merge(old, value)
        else:
            both[name] = value
    return both


def _holds(table: Mapping[str, Any], path: SettingPath) -> bool:
    """Whether the setting, or the table that it would be in, was written."""
    inner: Any = table
    for part in path:
        if not isinstance(inner, dict):
            return True  # an element of a list
        if part not in inner:
            return False
        inner = inner[part]
    return bool(path)
