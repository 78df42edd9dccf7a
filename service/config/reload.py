"""What of a changed configuration a running server can take over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.config.fields import LIVE
from service.config.settings import Settings


class Changes(NamedTuple):
    """The settings that differ, by their names: `port`, `channel.history_size`."""

    live: tuple[str, ...]
    """Those that can be applied at once."""

    restart: tuple[str, ...]
    """Those that need a restart."""


def reloadable(old: Settings, new: Settings) -> Changes:
    """Compare two configurations. The names only, never a value."""
    found = list(_differences(old, new, "", live=False))
    return Changes(
        tuple(name for name, live in found if live),
        tuple(name for name, live in found if not live),
    )


def is_live(field: FieldInfo) -> bool:
    """Whether the field is marked `LIVE`."""
    return any(mark is LIVE for mark in field.metadata)


def _differences(
    old: BaseModel, new: BaseModel, prefix: str, *, live: bool
) -> Iterator[tuple[str, bool]]:
    """The names that differ below `prefix`; a live table's settings are all live."""
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
