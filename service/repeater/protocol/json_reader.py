"""Reads messages of strangers: JSON objects of a known shape, in which parts pass through unread.

`null` means that a field was left out, except for `data`, where it is the value null. A lone
surrogate stays in the parts that pass through, and is U+FFFD in the texts that are read. The parser
of every day knows neither. So a message that it refuses is read a second time, field by field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from repeater.json_text import DEPTH_LIMIT, Masked, deeper, mask

T = TypeVar("T")

_NULL: Final = msgspec.Raw(b"null")
_VALUE: Final = "data"  # the one field in which null is a value

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_anything = msgspec.json.Decoder().decode

_type_info = cache(inspect.type_info)


def reader(kind: type[T], *, around: int) -> Callable[[bytes | str], T]:
    """Make a function that reads messages of one kind.

    The function raises `msgspec.ValidationError` for JSON of another shape, and its base
    `msgspec.DecodeError` for text that is not JSON in UTF-8 or too deep.

    Args:
        kind: A `Struct`, or a dict or list.
        around: The levels of the message around its parts that pass through unread. Each of these
            parts is then at most `DEPTH_LIMIT` levels deep.
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
            found = _read_again(kind, text, error)
        # A `str` with a surrogate of its own is not text.
        except (UnicodeError, RecursionError):
            raise msgspec.DecodeError("not JSON") from None
        return found

    return read


def _read_again(kind: Any, text: bytes | str, error: msgspec.DecodeError) -> Any:
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
        return msgspec.convert(_take(_type_info(kind), whole, masked), kind)
    except (UnicodeError, RecursionError):
        raise msgspec.DecodeError("not JSON") from None


def _take(kind: inspect.Type, raw: msgspec.Raw, masked: Masked | None) -> Any:
    """One value of a message as `msgspec.convert` takes it for this type."""
    match kind:
        case inspect.RawType():
            return raw if masked is None else msgspec.Raw(masked.restored(bytes(raw)))
        case inspect.UnionType(types) if raw != _NULL:
            known = [one for one in types if not isinstance(one, inspect.NoneType)]
            return _take(known[0] if len(known) == 1 else inspect.AnyType(), raw, masked)
        case inspect.StructType(fields=fields):
            kinds = {field.encode_name: field.type for field in fields}
            return {
                name: _take(kinds[name], value, masked)
                for name, value in _fields(raw).items()
                if name in kinds and (value != _NULL or name == _VALUE)
            }
        case inspect.DictType(value_type=value):
            return _take_dict(value, raw, masked)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return [_take(item, one, masked) for one in _items(raw)]
        case _:
            return _anything(raw if masked is None else masked.replaced(bytes(raw)))


def _take_dict(kind: inspect.Type, raw: msgspec.Raw, masked: Masked | None) -> dict[str, Any]:
    """An object with any names. A null stands for an object with nothing in it, or is left out."""
    found: dict[str, Any] = {}
    for name, value in _fields(raw).items():
        key = name if masked is None else _name(name, masked)
        if value != _NULL or isinstance(kind, inspect.RawType | inspect.UnionType):
            found[key] = _take(kind, value, masked)
        elif isinstance(kind, inspect.StructType):
            found[key] = {}
    return found


def _name(name: str, masked: Masked) -> str:
    marker = re.escape(_anything(b'"' + masked.marker + b'"'))
    return re.sub(marker + "[0-9a-fA-F]{4}", "\ufffd", name)
