"""A call that cannot be carried out: why, noted once for the operator, and told to the caller.

One call leaves one line in the log, whose `at` says which of its items is meant. All items count.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.api.answers import INTAKE_FULL, Failure, api_error
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from repeater.api.answers import CallRefusal
    from repeater.api.budget import Budget
    from repeater.api.method import Method
    from repeater.node import Node

Fault = ReplyError | BrokerError | IntakeFullError
"""What a call, or one item of several, raises."""

_SHOWN: Final = 60
"""Characters of a name that nobody knows, in answers and in the log."""
_UNKNOWN: Final = 3  # names of a body that are told
_MISSING: Final = "missing or empty"

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def body_of(method: Method, text: bytes) -> object:
    """The body of a call that failed; None if it cannot be read."""
    try:
        return method.decode(text)
    except msgspec.DecodeError:
        return None


def reply_error(
    fault: Fault, method: Method | None = None, body: object = None, text: bytes = b""
) -> ReplyError:
    """The error to answer with.

    Given the method, its body and the body's text, an error names the first field that is missing,
    whatever noticed it, and fields that the method does not have: one may be misspelt.
    """
    if isinstance(fault, IntakeFullError):
        return ReplyError(ErrorCode.TOO_MANY_REQUESTS, why=INTAKE_FULL.why)
    if isinstance(fault, BrokerError):
        why = Why(Cause.ENGINE, str(fault) or "it failed", fault.mend)
        return ReplyError(ErrorCode.INTERNAL, why=why)
    if method is None or body is None or fault.code is not ErrorCode.BAD_REQUEST:
        return fault
    lacking = (missing(name) for name in method.needs if not getattr(body, name))
    why = next(lacking, fault.why)
    if _MISSING in why.text and (unknown := _unknown_fields(method, text)):
        why = Why(why.cause, why.text, f"the body has unknown fields: {unknown}")
    return fault if why is fault.why else ReplyError(fault.code, why=why)


def _unknown_fields(method: Method, text: bytes) -> str:
    """The names of the first fields that a method does not have; empty without any."""
    try:
        names = _decode_fields(text)
    except msgspec.DecodeError:
        return ""  # what the second look of a reader takes, such as lone surrogates
    unknown = [name[:_SHOWN] for name in names if name not in method.fields]
    return ", ".join(map(repr, unknown[:_UNKNOWN]))


def missing(field: str) -> Why:
    """Why a call without this field is refused."""
    return Why(Cause.REQUEST, f"{field}: {_MISSING}")


def no_method(name: str, known: Iterable[str]) -> Why:
    """Why a call of another method than the known ones is refused."""
    name = name[:_SHOWN]
    near = get_close_matches(name, known, 1)
    mend = f"did you mean {near[0]!r}?" if near else f"the methods are {', '.join(known)}"
    return Why(Cause.METHOD, f"there is no method {name!r}", mend)


def note(node: Node, method: str, error: ReplyError, body: object = None, *, at: str = "") -> None:
    """Log and count a refused call, or an item of one: `at` says which."""
    channel = getattr(body, "channel", "")
    node.refusals.note(error.why, f"api {method}", code=int(error.code), channel=channel, at=at)


def note_refusal(node: Node, method: str, refusal: CallRefusal, address: str = "") -> None:
    """Log and count a request that is no call."""
    what = f"api {method[:_SHOWN]}".rstrip()
    node.refusals.note(refusal.why, what, status=int(refusal.status), address=address)


def item_failed(
    node: Node, budget: Budget, method: str, error: ReplyError, at: str, body: object = None
) -> Failure:
    """The answer to one item of several. The call's first one is logged, and the others count."""
    if getattr(budget, "told", False):
        node.refusals.count(error.why)
    else:
        budget.told = True
        note(node, method, error, body, at=at)
    return Failure(api_error(error))
