"""Settings made of options: an options class becomes a pydantic model with the same fields.

Names, defaults and docstrings stay where the options are; here are the types that a file or a
variable is read as, and the least that a number may be. A new option is a setting by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, TypeVar, get_origin

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, create_model

from repeater.options import Options, SecretText

AnyOptions = TypeVar("AnyOptions", bound=Options)
Model = TypeVar("Model", bound=BaseModel)

MADE_OF: Final[dict[type[BaseModel], type[Options]]] = {}
"""The options that a model was made of by `settings_of`: their docstrings are the settings'."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[smhd])")
_NAMESPACE: Final = re.compile(r"[-a-zA-Z0-9_.]{2,}")  # protocol, section 11


class Live:
    """Marks a setting that a running server takes over when its configuration is read again."""


LIVE: Final = Live()


def _number(value: object) -> object:
    """Refuse true and false, which pydantic would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _seconds(value: object) -> object:
    """The number of seconds in "10m"; anything else is for pydantic to judge."""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return float(found[1]) * _UNITS[found[2]]
    return _number(value)


def _split(value: object) -> object:
    """A variable's list: `a,b`, or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be a list: a,b or JSON") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def unless_empty(value: object) -> object:
    """An empty text, as an unset variable of a compose file is, says nothing."""
    return None if value == "" else value


def _namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise ValueError("a namespace's name is two or more of a-z A-Z 0-9 - _ .")
    return name


Integer = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Secret = Annotated[SecretStr | None, BeforeValidator(unless_empty)]
Regex = Annotated[re.Pattern[str] | None, BeforeValidator(unless_empty)]
NamespaceName = Annotated[str, AfterValidator(_namespace)]


def settings_of(
    options: type[Options],
    base: type[Model],
    *,
    leave_out: Collection[str] = (),
    live: Collection[str] = (),
    least: Mapping[str, int] | None = None,
) -> type[Model]:
    """A model below `base` with the options' fields.

    A number is above zero unless `least` says otherwise. `live` names what can be reloaded. A
    `SecretText` is a secret.
    """
    fields: dict[str, Any] = {}
    for one in msgspec.structs.fields(options):
        if one.name in leave_out:
            continue
        kind, default = _kind_of(one.type, (least or {}).get(one.name)), one.default
        if kind is SecretStr:
            default = SecretStr(default)
        if one.name in live:
            kind = Annotated[kind, LIVE]
        fields[one.name] = (kind, default)
    name = options.__name__.replace("Options", "Settings")
    model = create_model(
        name, __base__=base, __module__=__name__, __doc__=options.__doc__, **fields
    )
    MADE_OF[model] = options
    return model


def _kind_of(hint: Any, least: int | None) -> Any:
    """How a value of this type is read."""
    if hint == SecretText:
        return SecretStr
    if hint is float:
        return Annotated[Seconds, Field(gt=0) if least is None else Field(ge=least)]
    if hint is int:
        return Annotated[Integer, Field(ge=1 if least is None else least)]
    if hint == re.Pattern[str] | None:
        return Regex
    if get_origin(hint) is frozenset:
        return Annotated[hint, BeforeValidator(_split)]
    return hint


def options_of(settings: BaseModel, options: type[AnyOptions], **more: object) -> AnyOptions:
    """The options with the settings' values, secrets in the clear; `more` are not settings.

    Raises what the options' class raises.
    """
    names = set(options.__struct_fields__) & set(type(settings).model_fields)
    values = {name: getattr(settings, name) for name in names - set(more)}
    clear = {
        name: one.get_secret_value() if isinstance(one, SecretStr) else one
        for name, one in values.items()
    }
    return options(**clear, **more)
