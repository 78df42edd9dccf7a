"""JSON Schema of bodies and results, made by msgspec from the types that decode and encode them.

msgspec cannot describe two kinds of type, so each type is first copied with them replaced. Text
that passes through unread (`msgspec.Raw`) becomes any JSON. A union of several objects, which only
an encoder may have, becomes `anyOf`. A written object has all its fields, unless its type leaves
out defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

PREFIX: Final = "#/components/schemas/"
# Docstrings cite docs/protocol.md for people who change the server. The page leaves citations out.
_CITATION: Final = re.compile(r" \((?:protocol, )?sections? [0-9., and]+\)")


def result_of(call: Callable[..., object]) -> Any:
    """The return type in the annotations of a method's function."""
    function: Any = call.func if isinstance(call, partial) else call
    # The return type alone: the parameters' types may be imported for type checkers only.
    alone = type("Alone", (), {"__annotations__": {"return": function.__annotations__["return"]}})
    return get_type_hints(alone, function.__globals__)["return"]


class Schemas:
    """Gathers types. `components` returns the schemas of all of them and of their parts."""

    def __init__(self) -> None:
        self._mirrors: dict[tuple[type, bool], type[msgspec.Struct]] = {}

    def of(self, kind: Any, *, written: bool) -> dict[str, Any]:
        """The schema of a type that the server writes if `written`, otherwise reads."""
        (schema,), _ = msgspec.json.schema_components(
            (self._mirror(kind, written),), ref_template=PREFIX + "{name}"
        )
        return schema

    def components(self) -> dict[str, Any]:
        """The schemas of all objects that `of` was called for, by name."""
        _, found = msgspec.json.schema_components(
            tuple(self._mirrors.values()), ref_template=PREFIX + "{name}"
        )
        for schema in found.values():
            if "description" in schema:
                schema["description"] = for_readers(schema["description"])
        return found

    def _mirror(self, kind: Any, written: bool) -> Any:
        """A copy of the type that msgspec can describe."""
        origin, arguments = get_origin(kind), get_args(kind)
        if kind in (object, msgspec.Raw):
            return Any
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, written)
        if origin in (Union, UnionType):
            return self._union(arguments, written)
        if origin is Annotated:
            return Annotated[(self._mirror(arguments[0], written), *arguments[1:])]
        if origin in (list, dict, tuple):
            return origin[tuple(self._mirror(one, written) for one in arguments)]
        return kind

    def _struct(self, kind: type[msgspec.Struct], written: bool) -> type[msgspec.Struct]:
        if (kind, written) not in self._mirrors:
            always = written and not kind.__struct_config__.omit_defaults
            hints = get_type_hints(kind, include_extras=True)
            fields = [
                (one.encode_name, *self._field(hints[one.name], one, always, written))
                for one in msgspec.structs.fields(kind)
            ]
            self._mirrors[kind, written] = msgspec.defstruct(
                kind.__name__,
                fields,
                namespace={"__doc__": kind.__doc__},
                module="answer" if written else "request",
                kw_only=True,
            )
        return self._mirrors[kind, written]

    def _field(
        self, hint: Any, field: msgspec.structs.FieldInfo, always: bool, written: bool
    ) -> tuple[Any, ...]:
        """A field's type and default; no default if the field is always there."""
        mirror = self._mirror(hint, written)
        if field.required or always:
            return (mirror,)
        if field.default_factory is not msgspec.NODEFAULT:
            return mirror, msgspec.field(default_factory=field.default_factory)
        if isinstance(field.default, msgspec.Raw) or written:
            return Union[mirror, msgspec.UnsetType], msgspec.UNSET  # noqa: UP007 - made at run time
        return mirror, field.default

    def _union(self, kinds: tuple[Any, ...], written: bool) -> Any:
        mirrors = [self._mirror(one, written) for one in kinds]
        objects = [one for one in kinds if one is not NoneType and not _is_plain(one)]
        if len(objects) < 2:
            return Union[tuple(mirrors)]  # noqa: UP007 - made at run time
        choices = [self.of(one, written=written) for one in kinds]
        return Annotated[Any, msgspec.Meta(extra_json_schema={"anyOf": choices})]


def _is_plain(kind: Any) -> bool:
    """Whether a type is not written as a JSON object."""
    return get_origin(kind) is not dict and not (
        isinstance(kind, type) and issubclass(kind, (dict, msgspec.Struct))
    )


def for_readers(text: str) -> str:
    """A docstring's paragraphs, each on one line, without the citations of the protocol."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return _CITATION.sub("", "\n\n".join(paragraphs))
