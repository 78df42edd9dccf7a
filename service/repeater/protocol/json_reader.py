"""Reads messages of strangers: JSON objects of a known shape, in which parts pass through unread.

`null` means that a field was left out, except for `data`, where it is the value null. A lone
surrogate stays in the parts that pass through, and is U+FFFD in the texts that are read. The parser
of every day knows neither. So a message that it refuses is read a second time, field by field. That
takes a microsecond for each value, so the values of a stranger's message are limited.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from repeater.json_text import DEPTH_LIMIT, Masked, deeper, mask

T = TypeVar("T")

_NULL: Final = msgspec.Raw(b"null")
_VALUE: Final = "data"  # the one field in which null is a value

STRANGERS_VALUES: Final = 2_048
"""The most values of a stranger's message that is read field by field: some 2 ms. A filter of the
most nodes has 1,300, the positions of 128 channels have 600."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_anything = msgspec.json.Decoder().decode

_type_info = cache(inspect.type_info)


def reader(kind: type[T], *, around: int, values: int = sys.maxsize) -> Callable[[bytes | str], T]:
    """Make a function that reads messages of one kind.

    The function raises `msgspec.ValidationError` for JSON of another shape, and its base
    `msgspec.DecodeError` for text that is not JSON in UTF-8 or too deep.

    Args:
        kind: A `Struct`, or a dict or list.
        around: The levels of the message around its parts that pass through unread. Each of these
            parts is then at most `DEPTH_LIMIT` levels deep.
        values: The most values of a message that is read field by field, `STRANGERS_VALUES` for
            those of strangers. A message with more is of another shape.
    """
    decode = msgspec.json.Decoder(kind).decode
    limit = DEPTH_LIMIT + around
    # Valid text has two brackets for each level, so most messages are too short to be deep.
    short = 2 * limit + 1

    def read(text: bytes | str) -> T:
        if len(text) > short and deeper(text, limit):
            raise msgspec.DecodeError(f"deeper than {limit} levels")
        try:
            if isinstance(text, bytes):
                text.decode()  # The parser does not check the encoding of text that it skips.
            found: T = decode(text)
        except msgspec.DecodeError as error:
            found = _read_again(kind, text, error, values)
        # A `str` with a surrogate of its own is not text.
        except (UnicodeError, RecursionError):
            raise msgspec.DecodeError("not JSON") from None
        return found

    return read


def _read_again(kind: Any, text: bytes | str, error: msgspec.DecodeError, values: int) -> Any:
    """Read a message that the parser refused, if nulls or lone surrogates may be the reason.

    Raises:
        msgspec.DecodeError: they are not: the parser's error, or one like it.
    """
    data = text.encode() if isinstance(text, str) else text
    masked = mask(data)
    if masked is None and b"null" not in data:
        raise error
    whole = msgspec.Raw(data if masked is None else masked.text)
    try:
        return msgspec.convert(_Fields(masked, values).take(_type_info(kind), whole), kind)
    except (UnicodeError, RecursionError):
        raise msgspec.DecodeError("not JSON") from None


class _Fields:
    """Takes the fields of one message as `msgspec.convert` takes them."""

    __slots__ = ("_left", "_masked", "_surrogate")

    def __init__(self, masked: Masked | None, values: int) -> None:
        self._masked = masked
        self._left = values
        self._surrogate = "" if masked is None else masked.character

    def take(self, kind: inspect.Type, raw: msgspec.Raw) -> Any:
        """One value of this type, and the values in it."""
        self._ask_room(1)
        self._left -= 1
        masked = self._masked
        match kind:
            case inspect.RawType():
                return raw if masked is None else msgspec.Raw(masked.restored(bytes(raw)))
            case inspect.UnionType() if raw != _NULL:
                return self.take(_known(kind), raw)
            case inspect.StructType(cls=cls):
                kinds = _kinds(cls)
                return {
                    name: self.take(kinds[name], value)
                    for name, value in _fields(raw).items()
                    if name in kinds and (value != _NULL or name == _VALUE)
                }
            case inspect.DictType(value_type=value):
                return self._take_dict(value, raw)
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                items = _items(raw)
                self._ask_room(len(items))
                return [self.take(item, one) for one in items]
            case _:
                return _anything(raw if masked is None else masked.replaced(bytes(raw)))

    def _ask_room(self, values: int) -> None:
        if values > self._left:
            raise msgspec.ValidationError("too many values beside a null or a lone surrogate")

    def _take_dict(self, kind: inspect.Type, raw: msgspec.Raw) -> dict[str, Any]:
        """An object with any names. A null is an object with nothing in it, or is left out."""
        found: dict[str, Any] = {}
        fields = _fields(raw)
        self._ask_room(len(fields))
        for name, value in fields.items():
            key = self._name(name)
            if value != _NULL or isinstance(kind, inspect.RawType | inspect.UnionType):
                found[key] = self.take(kind, value)
            elif isinstance(kind, inspect.StructType):
                found[key] = {}
        return found

    def _name(self, name: str) -> str:
        if not self._surrogate or self._surrogate not in name:
            return name
        return re.sub(self._surrogate + "[0-9a-fA-F]{4}", "\ufffd", name)


@cache
def _kinds(cls: type) -> dict[str, inspect.Type]:
    """The types of a struct's fields, by their names in JSON."""
    kind = inspect.type_info(cls)
    assert isinstance(kind, inspect.StructType)
    return {field.encode_name: field.type for field in kind.fields}


def _known(kind: inspect.UnionType) -> inspect.Type:
    """The type of a field that may be null, if it has one type beside null."""
    known = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    return known[0] if len(known) == 1 else inspect.AnyType()
