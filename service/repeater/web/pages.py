"""The check of hosts and pages for everything behind the ASGI server, in front of all routes.

Two attacks of web pages are stopped here. A page whose own name was made to mean our address (DNS
rebinding) still says that name in `Host`: `allowed_hosts` refuses it, with 421. And in development
mode the server API has no key, so a page of another site could call it: its `Origin` is refused,
with 403. The native paths ask the same questions of the same `Request`.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from repeater.access.origins import Page
from repeater.front.request import request_of_scope
from repeater.protocol.http.answer import answer_status
from repeater.transports.asgi import Application, Receive, Send, refuse

if TYPE_CHECKING:
    from repeater.config import Settings

API: Final = "/api/"


class PageCheck:
    """An ASGI application: refuses requests for other hosts, and gives the rest to `app`."""

    def __init__(self, app: Application, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        judged = scope["type"] in ("http", "websocket")
        status = self._refusal(scope) if judged else None
        if status is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, answer_status(status))

    def _refusal(self, scope: Any) -> HTTPStatus | None:
        """The status that the request is refused with; None if it is not."""
        settings = self._settings()
        hosts, guarded = settings.hosts, settings.dev and scope["path"].startswith(API)
        if not (hosts or guarded):
            return None
        request = request_of_scope(scope)
        if not request.host_allowed(hosts):
            return HTTPStatus.MISDIRECTED_REQUEST
        if guarded and request.judge_page(settings.origins) is Page.FOREIGN:
            return HTTPStatus.FORBIDDEN
        return None
