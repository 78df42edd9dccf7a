"""The application as one counted connection sees it: its requests keep it from being pending.

If the address of the connection has too many, calls with the API key are served here, requests
without a body, which hold nothing (a health check, say), and subscriptions, which `admit` refuses
in the form that their clients understand. Everything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from repeater.front.request import CONNECTION
from repeater.front.responses import answer_later
from repeater.front.routes import ROUTES
from repeater.transports.asgi import refuse

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

    from repeater.front.open_connections import OpenConnection

_BODY: Final = (b"content-length", b"transfer-encoding")
_CLOSE: Final = (("Connection", "close"),)


class CountedApp:
    """Lives as long as its connection."""

    def __init__(self, app: AppWrapper, connection: OpenConnection) -> None:
        self._app = app
        self._connection = connection

    async def __call__(
        self,
        scope: Any,
        receive: Any,
        send: Any,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """Serve one request, or refuse it with 429."""
        connection = self._connection
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send, sync_spawn, call_soon)
            return
        scope[CONNECTION] = connection
        connection.begin()
        try:
            if self._is_served(scope):
                await self._app(scope, receive, send, sync_spawn, call_soon)
            else:
                await _refuse(scope, receive, send)
        finally:
            connection.end()

    def _is_served(self, scope: Any) -> bool:
        connection, path = self._connection, scope["path"]
        if connection.may_call(path, scope["headers"], scope["query_string"]):
            return True
        return not connection.refused or path in ROUTES or _is_bodiless(scope)


def _is_bodiless(scope: Any) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    return not any(name.lower() in _BODY and value != b"0" for name, value in scope["headers"])


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    # HTTP/2 forbids the header (RFC 9113, section 8.2.2); there the connection is pending.
    headers = _CLOSE if scope["http_version"].startswith("1") else ()
    await refuse(scope, receive, send, answer_later(HTTPStatus.TOO_MANY_REQUESTS, headers))
