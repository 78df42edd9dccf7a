"""The answers to calls: a status, a body, and the protocol's error objects.

API errors are 200 with `error`, as Centrifugo's libraries expect. A request with the header
`X-Centrifugo-Error-Mode: transport` gets HTTP statuses instead (protocol, section 18.1).
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.errors import ErrorCode
from repeater.protocol.http.answer import Answer

ERROR_MODE_HEADER: Final = "X-Centrifugo-Error-Mode"
TRANSPORT_MODE: Final = "transport"

# Keyed by number, because the server API has codes that the client protocol does not have.
_STATUSES: Final = {
    **{100: 500, 102: 404, 104: 404, 106: 409, 107: 400, 108: 400, 111: 429, 112: 416, 113: 409}
}


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

NOT_JSON: Final = Answer(400, b"Bad Request\n", "text/plain")
INTAKE_FULL: Final = Answer(503, b"Try later\n", "text/plain", (("Retry-After", "1"),))
UNAUTHORIZED: Final = Answer(401, b"", "text/plain")
NOT_ALLOWED: Final = Answer(405, b"", "text/plain", (("Allow", "POST"),))
REQUEST_TIMEOUT: Final = Answer(408, b"Request Timeout\n", "text/plain")
TOO_LARGE: Final = Answer(413, b"Request Entity Too Large\n", "text/plain")
FAILED: Final = Answer(500, b"Internal Server Error\n", "text/plain")


def statuses() -> dict[int, list[int]]:
    """The statuses of transport mode, each with the error codes that get it."""
    found: dict[int, list[int]] = {}
    for code, status in _STATUSES.items():
        found.setdefault(status, []).append(code)
    return found


def api_error(code: ErrorCode) -> ApiError:
    """The error object of a code. The text of 104 differs from the client protocol's."""
    if code is ErrorCode.METHOD_NOT_FOUND:
        return ApiError(int(code), "not found")
    return ApiError(int(code), code.message)


def failed(code: ErrorCode) -> Failure:
    """The answer for a failed call, or for one failed item of a call."""
    return Failure(api_error(code))


def answer_result(result: object) -> Answer:
    """200 with a result."""
    return Answer(200, encode(Result(result)))


def answer_error(code: ErrorCode, *, transport_mode: bool) -> Answer:
    """200 with `error`; in transport mode the code's own status and the bare error object."""
    if not transport_mode:
        return Answer(200, encode(failed(code)))
    return Answer(_STATUSES.get(int(code), 500), encode(api_error(code)))
