"""The server API as Quart routes, for requests that the native path does not serve.

Only the HTTP is here; `repeater.api` carries out the calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Blueprint, Response, request
from quart.typing import ResponseReturnValue

from repeater.api.answers import ERROR_MODE_HEADER, TRANSPORT_MODE, UNAUTHORIZED
from repeater.api.keys import ApiKey
from repeater.api.methods import METHODS, call
from repeater.node import Node
from repeater.protocol.http.answer import Answer


def create_api(node: Callable[[], Node], key: ApiKey) -> Blueprint:
    """Make `POST /api/<method>` for every method of the table, protected by the API key."""
    api = Blueprint("api", __name__, url_prefix="/api")

    @api.before_request
    async def check_key() -> ResponseReturnValue | None:
        return None if admits(key) else _response(UNAUTHORIZED)

    for name in METHODS:
        api.add_url_rule(f"/{name}", name, _view(node, name), methods=["POST"])
    return api


def _view(node: Callable[[], Node], name: str) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        body: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]
        transport_mode = request.headers.get(ERROR_MODE_HEADER) == TRANSPORT_MODE
        return _response(await call(node(), name, body, transport_mode=transport_mode))

    return view


def admits(key: ApiKey) -> bool:
    """Whether the running request may call the API."""
    return key.admits(_header("X-API-Key"), _header("Authorization"), request.query_string or b"")


def _header(name: str) -> bytes | None:
    """A header's bytes as received; None if it is missing."""
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")


def _response(answer: Answer) -> Response:
    return Response(
        answer.body, answer.status, dict(answer.headers), content_type=answer.content_type
    )
