"""The part of a changed configuration that a running server can apply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from repeater.config.errors import ConfigError, MistakesError
from repeater.config.fields import LIVE
from repeater.config.settings import Settings


class Changes(NamedTuple):
    """The settings that differ, by their names: `port`, `channel.history_size`."""

    live: tuple[str, ...]
    """Settings that can be applied at once."""

    restart: tuple[str, ...]
    """Settings that need a restart."""


def reloadable(old: Settings, new: Settings) -> Changes:
    """The settings that differ between two configurations: names only, never values."""
    found = list(_differences(old, new, "", live=False))
    return Changes(
        tuple(name for name, live in found if live),
        tuple(name for name, live in found if not live),
    )


def with_live_of(old: Settings, new: Settings) -> Settings:
    """The settings in force after a server that runs with `old` has read `new`.

    Live settings are those of `new`, all others those of `old`.

    Raises:
        ConfigError: the live settings of `new` contradict the others, which need a restart.
    """
    try:
        return type(old)(**_merged(old, new))
    except ValidationError as error:
        raise ConfigError(*_lines(error)) from None


def _lines(error: ValidationError) -> Iterator[str]:
    for one in error.errors(include_url=False, include_input=False):
        cause = one.get("ctx", {}).get("error")
        if isinstance(cause, MistakesError):
            for path, text in cause.mistakes:
                yield f"not without a restart: {'.'.join(path)}: {text}"
        else:
            path = tuple(str(part) for part in one["loc"])
            yield f"not without a restart: {'.'.join(path)}: {one['msg']}"


def _merged(old: BaseModel, new: BaseModel) -> dict[str, Any]:
    """The new values of live settings, also inside other tables, and the old values of the rest.

    What was left out stays left out: `data_dir` and others mean something else when they are set.
    """
    merged: dict[str, Any] = {}
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if name not in (new if is_live(field) else old).model_fields_set:
            continue
        if is_live(field):
            merged[name] = after
        elif isinstance(before, BaseModel) and isinstance(after, BaseModel):
            merged[name] = type(before)(**_merged(before, after))
        else:
            merged[name] = before
    return merged


def is_live(field: FieldInfo) -> bool:
    """Whether the field is marked `LIVE`."""
    return any(mark is LIVE for mark in field.metadata)


def _differences(
    old: BaseModel, new: BaseModel, prefix: str, *, live: bool
) -> Iterator[tuple[str, bool]]:
    """Each name below `prefix` that differs, and whether it is live: in a live table all are."""
    for name, field in type(old).model_fields.items():
        both = getattr(old, name), getattr(new, name)
        yield from _difference(*both, f"{prefix}{name}", live=live or is_live(field))


def _difference(old: object, new: object, name: str, *, live: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(old, BaseModel) and isinstance(new, BaseModel):
        yield from _differences(old, new, f"{name}.", live=live)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _difference(old.get(key), new.get(key), f"{name}.{key}", live=live)
    elif old != new:
        yield name, live
