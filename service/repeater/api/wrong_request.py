"""What is wrong with a request below `/api` that is no call: its path, its method, its size."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from repeater.api.answers import FAILED, SHUTTING_DOWN, CallRefusal
from repeater.api.methods import BODY_TIMEOUT, METHODS
from repeater.api.refusals import no_method
from repeater.api.stream import STREAM
from repeater.causes import Cause, Why

API: Final = "/api/"
"""How the paths of the server API begin."""

BODY_TOO_LATE: Final = CallRefusal(
    HTTPStatus.REQUEST_TIMEOUT,
    Why(Cause.REQUEST, f"the body did not arrive within {BODY_TIMEOUT:.0f} s"),
)
_OLD_FORM: Final = Why(
    Cause.METHOD, "POST /api is the old form of the API", "send POST /api/<method>"
)
_SHOWN: Final = 20  # characters of an HTTP method; the longest one that is registered has 17


def is_api(path: str) -> bool:
    """Whether a path belongs to the server API."""
    return path.startswith(API) or path == API[:-1]


def name_of(path: str) -> str:
    """The name of the method that a path calls; empty without one."""
    return path.removeprefix(API) if path.startswith(API) else ""


def unauthorized(why: Why) -> CallRefusal:
    """401: the API key is missing or wrong."""
    return CallRefusal(HTTPStatus.UNAUTHORIZED, why)


def too_large(limit: int) -> CallRefusal:
    """413: the body has more bytes than this."""
    text = f"the body has more than {limit} bytes"
    return CallRefusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        Why(Cause.LIMIT, text, "send several calls, a stream, or raise body_limit"),
    )


def unknown_path(path: str) -> CallRefusal:
    """404: no method has this path."""
    name = name_of(path)
    why = no_method(name, (*METHODS, STREAM)) if name else _OLD_FORM
    return CallRefusal(HTTPStatus.NOT_FOUND, why)


def not_post(method: str) -> CallRefusal:
    """405: every call is a POST."""
    why = Why(Cause.METHOD, f"a call is a POST, and this was a {method[:_SHOWN]}")
    return CallRefusal(HTTPStatus.METHOD_NOT_ALLOWED, why, (("Allow", "POST"),))


def refusal_of(status: HTTPStatus, path: str, method: str, limit: int) -> CallRefusal:
    """The refusal of a request that something else gave this status."""
    match status:
        case HTTPStatus.NOT_FOUND:
            return unknown_path(path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return not_post(method)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return too_large(limit)
        case HTTPStatus.REQUEST_TIMEOUT:
            return BODY_TOO_LATE
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return SHUTTING_DOWN
        case HTTPStatus.INTERNAL_SERVER_ERROR:
            return FAILED
    return CallRefusal(status, Why(Cause.REQUEST, status.phrase.lower()))
