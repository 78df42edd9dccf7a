"""The server API as Quart routes, for requests that the native path does not serve.

Only the HTTP is here; `repeater.api` carries out the calls. Every answer below `/api` is JSON, also
to a request that no route takes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from quart import Blueprint, Response, current_app, has_request_context, request
from quart.typing import ResponseReturnValue

from repeater.api.answers import ERROR_MODE_HEADER, TRANSPORT_MODE, CallRefusal
from repeater.api.keys import ApiKey
from repeater.api.methods import METHODS, call
from repeater.api.refusals import note_refusal
from repeater.api.wrong_request import is_api, name_of, refusal_of, unauthorized
from repeater.front.request import request_of_scope
from repeater.node import Node
from repeater.protocol.http.answer import Answer

if TYPE_CHECKING:
    from werkzeug.exceptions import HTTPException

_NAME: Final = "api"
_ROUTES: Final = (None, f"repeater_{_NAME}")
"""The blueprints of requests that are ours: none for a request without a route."""
_ERROR_MODE: Final = ERROR_MODE_HEADER.lower().encode()


def create_api(node: Callable[[], Node], key: ApiKey) -> Blueprint:
    """Make `POST /api/<method>` for every method of the table, protected by the API key."""
    api = Blueprint(_NAME, __name__, url_prefix="/api")

    @api.before_request
    async def check_key() -> ResponseReturnValue | None:
        if admits(key):
            return None
        why = key.why_not(_header("X-API-Key"), _header("Authorization"), _query())
        return _refused(node(), unauthorized(why))

    for name in METHODS:
        api.add_url_rule(f"/{name}", name, _view(node, name), methods=["POST"])
    return api


def _view(node: Callable[[], Node], name: str) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        body: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]
        transport_mode = request.headers.get(ERROR_MODE_HEADER) == TRANSPORT_MODE
        return _response(await call(node(), name, body, transport_mode=transport_mode))

    return view


def answer_error(node: Node, error: HTTPException) -> Response | None:
    """The answer to a request of the API that Quart refuses; None for requests of other routes."""
    if not has_request_context():  # a WebSocket
        return None
    if not is_api(request.path) or request.blueprint not in _ROUTES or (error.code or 0) < 400:
        return None
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    status = HTTPStatus(error.code or 0)
    return _refused(node, refusal_of(status, request.path, request.method, limit))


def _refused(node: Node, refusal: CallRefusal) -> Response:
    """Refuse the running request. Its path is without a prefix, and its scope's is not."""
    return _response(refuse_call(node, request.scope, refusal, request.path))


def refuse_call(node: Node, scope: Any, refusal: CallRefusal, path: str = "") -> Answer:
    """Note a refusal of a request of the API, and return the answer in the mode that it asks for.

    For whatever stands in front of the routes, too.
    """
    name = name_of(path or scope["path"])
    note_refusal(node, name, refusal, request_of_scope(scope).address)
    return in_mode_of(scope, refusal)


def in_mode_of(scope: Any, refusal: CallRefusal) -> Answer:
    """The answer in the mode that a request asks for."""
    mode = next((value for name, value in scope["headers"] if name.lower() == _ERROR_MODE), b"")
    return refusal.answer(transport_mode=mode == TRANSPORT_MODE.encode())


def admits(key: ApiKey) -> bool:
    """Whether the running request may call the API."""
    return key.admits(_header("X-API-Key"), _header("Authorization"), _query())


def _query() -> bytes:
    return request.query_string or b""


def _header(name: str) -> bytes | None:
    """A header's bytes as received; None if it is missing."""
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")


def _response(answer: Answer) -> Response:
    return Response(
        answer.body, answer.status, dict(answer.headers), content_type=answer.content_type
    )
