"""Settings made of options: an options class becomes a pydantic model with the same fields.

Names, defaults and docstrings stay in the options class. Here are the types that read the values of
a file or a variable, and the least value of each number. A new option becomes a setting by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_origin

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, create_model

from repeater.options import Options, SecretText

AnyOptions = TypeVar("AnyOptions", bound=Options)
Model = TypeVar("Model", bound=BaseModel)
AnySecret = TypeVar("AnySecret", SecretStr, SecretStr | None)

MADE_OF: Final[dict[type[BaseModel], type[Options]]] = {}
"""The options class of each model that `settings_of` made; its docstrings describe the settings."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[smhd])")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PATH: Final = re.compile(r"(?:/[a-zA-Z0-9._~-]+)+")  # RFC 3986's unreserved characters
_NAMESPACE: Final = re.compile(r"[-a-zA-Z0-9_.]{2,}")  # protocol, section 11


class Live:
    """Marks a setting that a running server applies when it reads its configuration again."""


LIVE: Final = Live()


def _number(value: object) -> object:
    """Refuse true and false, which pydantic would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _seconds(value: object) -> object:
    """The number of seconds: 600.0 for "10m". Pydantic judges a text of another form."""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return float(found[1]) * _UNITS[found[2]]
    return _number(value)


def _split(value: object) -> object:
    """The list in the text of a variable: `a,b`, or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be a list: a,b or JSON") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def unless_empty(value: object) -> object:
    """The value, but None for an empty text."""
    # A compose file passes a variable without a value as an empty text.
    return None if value == "" else value


def encodable(secret: AnySecret) -> AnySecret:
    """Refuse half a surrogate, which stands for a byte of a variable that is not UTF-8."""
    try:
        (secret.get_secret_value() if secret else "").encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return secret


def _fits_a_header(secret: SecretStr | None) -> SecretStr | None:
    """Refuse a text that no header can carry as it is."""
    text = secret.get_secret_value() if secret else ""
    if _CONTROL.search(text) or text != text.strip(" "):
        raise ValueError("must have no control characters, and no blanks at its ends")
    return secret


def _namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise ValueError("a namespace's name is two or more of a-z A-Z 0-9 - _ .")
    return name


def _workers(value: object) -> object:
    """A number from 1, or "auto"."""
    text = str(value).strip()
    if text == "auto":
        return text
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not int(text):
        raise ValueError('must be a whole number from 1, or "auto"')
    return int(text)


def _path_prefix(prefix: str) -> str:
    """The prefix without a slash at its end."""
    if not prefix:
        return ""
    path = prefix.removesuffix("/")
    if not path:
        raise ValueError("must be empty for a server at /")
    if not path.startswith("/"):
        raise ValueError("must begin with /, as in /realtime")
    if not _PATH.fullmatch(path):
        raise ValueError("may have a-z A-Z 0-9 - _ . ~ and single slashes: no escapes, no query")
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("must not have . or .. between slashes")
    return path


Integer = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Secret = Annotated[SecretStr | None, BeforeValidator(unless_empty), AfterValidator(encodable)]
HeaderSecret = Annotated[Secret, AfterValidator(_fits_a_header)]
Regex = Annotated[re.Pattern[str] | None, BeforeValidator(unless_empty)]
NamespaceName = Annotated[str, AfterValidator(_namespace)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix), Field(max_length=255)]


def settings_of(
    options: type[Options],
    base: type[Model],
    *,
    leave_out: Collection[str] = (),
    live: Collection[str] = (),
    least: Mapping[str, int] | None = None,
) -> type[Model]:
    """A model below `base` with the options' fields.

    A number must be above zero, unless `least` has a least value for it. `live` names the settings
    that can be reloaded. A `SecretText` becomes a `SecretStr`.
    """
    fields: dict[str, Any] = {}
    for one in msgspec.structs.fields(options):
        if one.name in leave_out:
            continue
        kind, default = _kind_of(one.type, (least or {}).get(one.name)), one.default
        if one.type == SecretText:
            default = SecretStr(default)
        if one.name in live:
            kind = Annotated[kind, LIVE]
        fields[one.name] = (kind, default)
    name = options.__name__.replace("Options", "Settings")
    model = create_model(
        name, __base__=base, __module__=base.__module__, __doc__=options.__doc__, **fields
    )
    MADE_OF[model] = options
    return model


def _kind_of(hint: Any, least: int | None) -> Any:
    """The type that reads a value for an option of type `hint`."""
    if hint == SecretText:
        return Annotated[SecretStr, AfterValidator(encodable)]
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
    """The options with the settings' values, secrets in the clear; `more` are options beside them.

    The errors of the options' class pass through.
    """
    names = set(options.__struct_fields__) & set(type(settings).model_fields)
    values = {name: getattr(settings, name) for name in names - set(more)}
    clear = {
        name: one.get_secret_value() if isinstance(one, SecretStr) else one
        for name, one in values.items()
    }
    return options(**clear, **more)
