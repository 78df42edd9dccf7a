"""The answers to calls: a status, a body, and the protocol's error objects.

API errors are 200 with `error`, as Centrifugo's libraries expect. A request with the header
`X-Centrifugo-Error-Mode: transport` gets HTTP statuses instead (protocol, section 18.1). What is no
call gets a status in either mode. Every text begins with the code's own, and then says why.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError
from repeater.protocol.http.answer import Answer

ERROR_MODE_HEADER: Final = "X-Centrifugo-Error-Mode"
TRANSPORT_MODE: Final = "transport"

# Keyed by number, because the server API has codes that the client protocol does not have.
_STATUSES: Final = {
    **{100: 500, 102: 404, 104: 404, 106: 409, 107: 400, 108: 400, 111: 429, 112: 416, 113: 409}
}
_CODES: Final = {
    HTTPStatus.UNAUTHORIZED: ErrorCode.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN: ErrorCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: ErrorCode.METHOD_NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ErrorCode.LIMIT_EXCEEDED,
    HTTPStatus.MISDIRECTED_REQUEST: ErrorCode.PERMISSION_DENIED,
    HTTPStatus.INTERNAL_SERVER_ERROR: ErrorCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorCode.TOO_MANY_REQUESTS,
}
"""The codes in answers with these statuses; all others have 107."""
_LONGEST: Final = 500
"""Characters of an error's text: a reason may name a channel, or repeat what an engine said."""


class ApiError(msgspec.Struct, frozen=True):
    """The error object. Code and text are always present."""

    code: int
    message: str


class Result(msgspec.Struct, frozen=True):
    """The answer of a call that succeeded."""

    result: object


class Failure(msgspec.Struct, frozen=True):
    """The answer of a call that failed."""

    error: ApiError


encode: Final = msgspec.json.Encoder().encode


class CallRefusal(msgspec.Struct, frozen=True):
    """What a request gets that is no call, or that cannot be taken now: a status, and why."""

    status: HTTPStatus
    why: Why
    headers: tuple[tuple[str, str], ...] = ()
    code: ErrorCode | None = None
    """The error's code; None for the one that belongs to the status."""

    @property
    def error(self) -> ApiError:
        """The error object."""
        code = self.code or _CODES.get(self.status, ErrorCode.BAD_REQUEST)
        return ApiError(int(code), _text(code, "", self.why))

    def answer(self, *, transport_mode: bool = False) -> Answer:
        """The answer, with the error object of either mode."""
        body = encode(self.error if transport_mode else Failure(self.error))
        return Answer(int(self.status), body, headers=self.headers)


_LATER: Final = (("Retry-After", "1"),)
INTAKE_FULL: Final = CallRefusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    Why(Cause.LIMIT, "fan-out made no room in time", "call again later"),
    _LATER,
)
SHUTTING_DOWN: Final = CallRefusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    Why(Cause.SHUTDOWN, "the server shuts down", "call again"),
    _LATER,
)
FAILED: Final = CallRefusal(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    Why(Cause.ENGINE, "a fault of the server's own", "its log has the traceback"),
)


def statuses() -> dict[int, list[int]]:
    """The statuses of transport mode, each with the error codes that get it."""
    found: dict[int, list[int]] = {}
    for code, status in _STATUSES.items():
        found.setdefault(status, []).append(code)
    return found


def _text(code: ErrorCode, more: str, why: Why) -> str:
    """The code's text, and what is known beyond it. The text of 104 is not the clients'."""
    text = "not found" if code is ErrorCode.METHOD_NOT_FOUND else code.message
    known = [text, *(one for one in (more, str(why)) if one and one != code.message)]
    return ": ".join(dict.fromkeys(known))[:_LONGEST]


def api_error(error: ReplyError) -> ApiError:
    """The error object. Whoever calls has the key, and is told why in production too."""
    return ApiError(int(error.code), _text(error.code, error.message, error.why))


def answer_result(result: object) -> Answer:
    """200 with a result."""
    return Answer(200, encode(Result(result)))


def answer_error(error: ReplyError, *, transport_mode: bool) -> Answer:
    """200 with `error`; in transport mode the code's own status and the bare error object."""
    told = api_error(error)
    if not transport_mode:
        return Answer(200, encode(Failure(told)))
    return Answer(_STATUSES.get(told.code, 500), encode(told))
