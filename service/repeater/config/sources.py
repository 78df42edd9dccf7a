"""Where settings come from: the file, then the environment, then the command line.

pydantic-settings reads the file and the environment. This module merges them itself, so that an
error can say where its setting was written. No line of an error holds a value, which may be secret.
"""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from repeater.config.errors import ConfigError, Mistake, MistakesError
from repeater.config.inherited import WORKER_VARIABLES
from repeater.config.settings import Settings
from repeater.config.tables import SettingPath, leaves_of, nearest, table_in

_TRUTH: Final = "must be true or false"
_WHOLE: Final = "must be a whole number"
_TIME: Final = "must be seconds, or a number with ms, s, m, h or d, such as 10m"
# These replace pydantic's own words, which speak of parsing.
_TEXTS: Final = {
    **{"bool_parsing": _TRUTH, "bool_type": _TRUTH},
    **{"int_parsing": _WHOLE, "int_type": _WHOLE, "int_from_float": _WHOLE},
    **{"float_parsing": _TIME, "float_type": _TIME},  # every float is a time
    "finite_number": _TIME,
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
}
PREFIX: Final = "REPEATER_"
DELIMITER: Final = "__"
DEFAULT_FILE: Final = Path("repeater.toml")
# Variables of the command line and of workers, which are not settings.
OTHER_VARIABLES: Final = frozenset({"REPEATER_CONFIG", "REPEATER_URL"}) | WORKER_VARIABLES


def load_settings(
    config: Path | str | None = None, model: type[Settings] = Settings, /, **overrides: object
) -> Settings:
    """Read the file (see `find_config`) and the environment; `overrides` win over both.

    Args:
        config: The file.
        model: The class of the settings: the server's own, or the class of an extension.
        overrides: Values from elsewhere, the command line for example; None overrides nothing.

    Raises:
        ConfigError: the settings are wrong; a line for each mistake names the file or variable and
            the setting.
    """
    file = find_config(config)
    given = {name: one for name, one in overrides.items() if one is not None}
    return _settings(_Sources(model, file, given))


def settings_alone(values: Mapping[str, object], model: type[Settings] = Settings) -> Settings:
    """Settings with these values and the defaults: neither a file nor the environment is read.

    Raises:
        ConfigError: the settings are wrong; a line for each mistake names the setting.
    """
    return _settings(_Sources(model, None, dict(values), environment=False))


def _settings(sources: _Sources) -> Settings:
    lines = [*sources.unknown_variables(), *sources.unknown_at_the_top()]
    values = sources.merged()
    try:
        settings = sources.model(**values)
    except ValidationError as error:
        lines += [*sources.lines(error), *sources.combinations(values, error)]
    else:
        if not lines:
            return settings
    raise ConfigError(*lines)


def find_config(config: Path | str | None = None) -> Path | None:
    """The file to read: `config`, or REPEATER_CONFIG, or `./repeater.toml` if that file exists."""
    named = config or os.environ.get("REPEATER_CONFIG")
    if named:
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def variable_of(path: SettingPath) -> str:
    """The variable of a setting, for example REPEATER_CHANNEL__HISTORY_SIZE."""
    return PREFIX + DELIMITER.join(path).upper()


class _Sources:
    """The values of each source, while one configuration is being read."""

    def __init__(
        self,
        model: type[Settings],
        file: Path | None,
        overrides: dict[str, object],
        *,
        environment: bool = True,
    ) -> None:
        self.model = model
        self._file = file
        self._written = _read(file, model) if file else {}
        variables = os.environ if environment else ()
        self._variables = {name.upper() for name in variables if _is_ours(name)}
        self._environment: dict[str, Any] = EnvSettingsSource(model)() if environment else {}
        self._overrides = overrides

    def merged(self) -> dict[str, Any]:
        """The values of all sources for the model, without names that the model does not have."""
        all_of_it = _merge(_merge(self._written, self._environment), self._overrides)
        return {name: one for name, one in all_of_it.items() if name in self.model.model_fields}

    def unknown_variables(self) -> Iterator[str]:
        """A line for each variable that begins with `PREFIX` and belongs to no setting."""
        for variable in sorted(self._variables - OTHER_VARIABLES):
            path = tuple(variable.removeprefix(PREFIX).lower().split(DELIMITER))
            inside_a_leaf = len(path) > 1 and path[0] in leaves_of(self.model)
            if inside_a_leaf or path[0] not in self.model.model_fields:
                yield self._unknown(path)

    def unknown_at_the_top(self) -> Iterator[str]:
        """A line for each unknown name outside tables; pydantic finds unknown names in tables."""
        for name in [*self._written, *self._overrides]:
            if name not in self.model.model_fields:
                yield self._unknown((name,))

    def lines(self, error: ValidationError) -> Iterator[str]:
        """One line for each mistake."""
        for one in error.errors(include_url=False, include_input=False):
            cause = one.get("ctx", {}).get("error")
            path = tuple(str(part) for part in one["loc"] if part != "[key]")
            if isinstance(cause, MistakesError):
                yield from map(self._told, cause.mistakes)
            elif one["type"] == "extra_forbidden":
                yield self._unknown(path)
            else:
                yield f"{self._where(path)}: {self._text(path, one)}"

    def combinations(self, values: dict[str, Any], error: ValidationError) -> Iterator[str]:
        """A line for each contradiction between settings, if single values are wrong too.

        pydantic looks at combinations only if each value is valid. So the model is made once more
        without the wrong values. Mistakes that name a left-out setting are not reported, since they
        may come from leaving it out.
        """
        wrong = [one["loc"] for one in error.errors(include_url=False, include_input=False)]
        if () in wrong:
            return  # The first attempt reported the combinations.
        rest = copy.deepcopy(values)
        for path in wrong:
            _leave_out(rest, path)
        names = {[str(part) for part in path if isinstance(part, str)][-1] for path in wrong}
        try:
            self.model(**rest)
        except ValidationError as second:
            for one in second.errors(include_url=False, include_input=False):
                cause = one.get("ctx", {}).get("error")
                if isinstance(cause, MistakesError):
                    for mistake in cause.mistakes:
                        words = {*mistake.path, *re.findall(r"\w+", mistake.text)}
                        if not words & names:
                            yield self._told(mistake)

    def _told(self, mistake: Mistake) -> str:
        """The line of a mistake; if another setting is needed, the line names its variable too."""
        text = mistake.text
        if text.startswith("needs "):
            needed = (*mistake.path[:-1], text.removeprefix("needs "))
            table = table_in(self.model, needed[:-1])
            if table is not None and needed[-1] in table.model_fields:
                text += f" (variable {variable_of(needed)})"
        return f"{self._where(mistake.path)}: {text}"

    def _text(self, path: SettingPath, error: Mapping[str, Any]) -> str:
        if error["type"] in ("model_type", "dict_type"):
            variable = variable_of(path)
            more = f"; its settings are {variable}{DELIMITER}<NAME>"
            return f"is a table{more if variable in self._variables else ''}"
        if error["type"] in _TEXTS:
            return _TEXTS[error["type"]]
        text: str = error["msg"].removeprefix("Value error, ")
        return text.replace("Input should", "must").replace("String should", "must")

    def _unknown(self, path: SettingPath) -> str:
        where = self._where(path)
        near = nearest(path, self.model)
        if near is None:
            return f"{where}: unknown setting"
        if where in self._variables:
            return f"{where}: unknown setting; did you mean {variable_of(near)}?"
        name = near[-1] if near[:-1] == path[:-1] else ".".join(near)
        return f"{where}: unknown setting; did you mean {name}?"

    def _where(self, path: SettingPath) -> str:
        """Where the setting was written: its variable, or file and name, or the name alone."""
        name = ".".join(path)
        if path and path[0] in self._overrides:
            return name
        for end in range(len(path), 0, -1):
            if variable_of(path[:end]) in self._variables:
                return variable_of(path[:end])
        if self._file is not None and _holds(self._written, path):
            return f"{self._file}: {name}"
        return name


def _read(file: Path, model: type[Settings]) -> dict[str, Any]:
    """The file's contents.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        with file.open("rb"):
            pass  # raises if the file is missing; pydantic-settings takes it for empty
        return TomlConfigSettingsSource(model, file)()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: must be UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _leave_out(table: dict[str, Any], path: tuple[Any, ...]) -> None:
    """Remove the setting from the values, or the nearest table or list around the setting."""
    inner = table
    for part in path[:-1]:
        if not isinstance(inner.get(part), dict):
            break
        inner = inner[part]
    else:
        part = path[-1]
    inner.pop(part, None)


def _is_ours(variable: str) -> bool:
    return variable.upper().startswith(PREFIX)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both; where both have a value, the one in `above` wins, also inside tables."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            both[name] = _merge(old, value)
        else:
            both[name] = value
    return both


def _holds(table: Mapping[str, Any], path: SettingPath) -> bool:
    """Whether the values have this setting, or a value in place of a table around it."""
    inner: Any = table
    for part in path:
        if not isinstance(inner, dict):
            return True  # an element of a list, or a value where a table should be
        if part not in inner:
            return False
        inner = inner[part]
    return bool(path)
