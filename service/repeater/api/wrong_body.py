"""What is wrong with a body, in words: the field's name first. Repeats nothing of the body."""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.causes import Cause, Why
from repeater.protocol.json_faults import fault_of

_LOOK: Final = 1_024  # bytes of a body in which single quotes are looked for
_DEEPER: Final = "deeper"
_NOT_TEXT: Final = "not JSON"
"""What a `reader` says of text that no parser can look at."""
_MALFORMED: Final = "JSON is malformed: "
_PLAINER: Final = {"Input data was truncated": "it ends too early"}
"""What the parser says that needs other words."""
_OBJECT: Final = "send a JSON object"


def unreadable(error: msgspec.DecodeError, text: bytes, whole: str) -> Why:
    """Why a part of a body, called `whole`, is not JSON, or has another shape than it should."""
    if isinstance(error, msgspec.ValidationError):
        return wrong_shape(error, whole)
    return not_json(error, text, whole)


def wrong_shape(error: msgspec.ValidationError, whole: str = "the body") -> Why:
    """Why JSON has another shape than it should: `tags[...]: must be text, not a number`."""
    fault = fault_of(error)
    return Why(
        Cause.REQUEST, f"{fault.place}: {fault.text}" if fault.place else f"{whole} {fault.text}"
    )


def not_json(error: msgspec.DecodeError, text: bytes, whole: str = "the body") -> Why:
    """Why a text cannot be read, and what newcomers get wrong most often."""
    if not text.strip():
        return Why(Cause.REQUEST, f"{whole} is empty", _OBJECT)
    said = str(error)
    if said.startswith(_DEEPER):
        return Why(Cause.REQUEST, f"{whole} is nested {said}")
    said = _PLAINER.get(said, said.removeprefix(_MALFORMED))
    reason = f": {said}" if said != _NOT_TEXT else " in UTF-8"
    begin = text[:_LOOK].lstrip()
    mend = ""
    if begin[:1] not in b"{[":
        mend = _OBJECT
    elif b"'" in begin and b'"' not in begin:
        mend = "names and texts need double quotes"
    return Why(Cause.REQUEST, f"{whole} is not JSON{reason}", mend)
