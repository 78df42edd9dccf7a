"""The shape of the configuration: which fields are tables, and which settings a table has.

Also finds the setting that the user probably meant by an unknown name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SettingPath = tuple[str, ...]

ANY_NAME: Final = "<name>"
"""Stands for the key of a table of tables: `namespaces.<name>`."""


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a table, optional or not, or a table of tables; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = model_in(inner)
        if found is not None:
            return found
    return None


def is_family(field: FieldInfo) -> bool:
    """Whether the table holds tables by name."""
    return get_origin(field.annotation) is dict


def leaves_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of one table, without the tables in it."""
    fields = model.model_fields.items()
    return {name: field for name, field in fields if model_in(field.annotation) is None}


def tables_of(
    model: type[BaseModel], path: SettingPath = ()
) -> Iterator[tuple[SettingPath, type[BaseModel]]]:
    """Every table with its path; first the outermost table, whose path is empty."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None:
            below = (*path, name, ANY_NAME) if is_family(field) else (*path, name)
            yield from tables_of(inner, below)


def table_in(model: type[BaseModel], path: SettingPath) -> type[BaseModel] | None:
    """The model of the table with this path; None if it does not exist."""
    for found, table in tables_of(model):
        same = (one in (part, ANY_NAME) for one, part in zip(found, path, strict=False))
        if len(found) == len(path) and all(same):
            return table
    return None


def nearest(path: SettingPath, root: type[BaseModel]) -> SettingPath | None:
    """The setting that the user probably meant by the unknown path; None if nothing is near.

    First a setting of the same name in another table, then a similar name in the same table, then a
    similar table.
    """
    known = _settings(root)
    same = [one for one in known if one[-1] == path[-1]]
    if same:
        return same[0]
    table = table_in(root, path[:-1])
    names = (table or root).model_fields
    near = difflib.get_close_matches(path[-1] if table else path[0], names, n=1)
    if near:
        if table:
            return (*path[:-1], near[0])
        return (near[0],) if near[0] in leaves_of(root) else (near[0], *path[1:])
    dotted = {".".join(one): one for one in known}
    found = difflib.get_close_matches(".".join(path), dotted, n=1)
    return dotted[found[0]] if found else None


def _settings(root: type[BaseModel]) -> list[SettingPath]:
    """The path of every setting, except in tables that the user names (`namespaces.<name>`)."""
    tables = [(path, model) for path, model in tables_of(root) if ANY_NAME not in path]
    return [(*path, name) for path, model in tables for name in leaves_of(model)]
