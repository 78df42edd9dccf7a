"""What is wrong with a JSON document, in words that name the field: the parser's words made plain.

`Expected `str | null`, got `int` - at `$.result.user`` becomes "the field result.user must be text,
not a number". A fault names fields and types, never a value.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "bytes": "base64 text",
    "null": "null",
}
_FOUND: Final = {"int": "a number", "float": "a number with a fraction or an exponent"}
_TYPE: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(.*)")
_RANGE: Final = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)(.*)")
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`(.*)")
_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`")
_BOUNDS: Final = {">=": "{} or more", "<=": "at most {}", ">": "above {}", "<": "below {}"}


class JSONFault(msgspec.Struct, frozen=True):
    """One fault of a document."""

    place: str
    """The field, as in `result.subs[...].info`; empty for the document as a whole."""
    text: str
    """What is wrong there: `must be text, not a number`."""

    def about(self, noun: str) -> str:
        """The fault as a sentence about a `noun`: a field, a claim."""
        return f"the {noun} {self.place} {self.text}" if self.place else f"it {self.text}"

    def __str__(self) -> str:
        return self.about("field")


def fault_of(error: msgspec.DecodeError) -> JSONFault:
    """What the parser's error says."""
    said = str(error)
    if not isinstance(error, msgspec.ValidationError):
        deep = said if said.startswith("deeper") else "JSON"
        return JSONFault("", f"is {deep}" if deep is said else "is not JSON")
    if found := _TYPE.fullmatch(said):
        wanted, got, rest = found.groups()
        return JSONFault(_place(rest), f"must be {_wanted(wanted)}, not {_got(got)}")
    if found := _RANGE.fullmatch(said):
        sign, bound, rest = found.groups()
        return JSONFault(_place(rest), f"must be {_BOUNDS[sign].format(bound)}")
    if found := _MISSING.fullmatch(said):
        name, rest = found.groups()
        return JSONFault(".".join(filter(None, (_place(rest), name))), "is missing")
    place = _PLACE.search(said)
    text = said if place is None else said[: place.start()]
    return JSONFault(place[1] if place else "", f"is wrong: {text}")


def _place(rest: str) -> str:
    found = _PLACE.match(rest)
    return found[1] if found else ""


def _wanted(types: str) -> str:
    """The types that are wanted, without the null that may stand for a missing field."""
    names = [one for one in types.split(" | ") if one != "null"]
    return " or ".join(_WORDS.get(one, one) for one in names) or "null"


def _got(name: str) -> str:
    return _FOUND.get(name) or _WORDS.get(name, name)
