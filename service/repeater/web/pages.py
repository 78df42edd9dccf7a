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
from repeater.api.answers import CallRefusal
from repeater.api.wrong_request import API, is_api
from repeater.causes import Why
from repeater.front.reasons import explained, foreign_page, other_host
from repeater.front.request import request_of_scope
from repeater.front.routes import ROUTES
from repeater.protocol.http.answer import answer_status
from repeater.transports.asgi import Application, Receive, Send, refuse
from repeater.web.api import in_mode_of

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.front.request import Request
    from repeater.node import Node
    from repeater.protocol.http.answer import Answer

_SHOWN: Final = 200
"""Characters of a stranger's path that a line of the log shows."""


class PageCheck:
    """An ASGI application: refuses requests for other hosts, and gives the rest to `app`."""

    def __init__(
        self, app: Application, node: Callable[[], Node], settings: Callable[[], Settings]
    ) -> None:
        self._app = app
        self._node = node
        self._settings = settings

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        judged = scope["type"] in ("http", "websocket")
        answer = self._refusal(scope) if judged else None
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, answer)

    def _refusal(self, scope: Any) -> Answer | None:
        """The answer that refuses the request, which is noted; None if it is not refused."""
        settings = self._settings()
        hosts, guarded = settings.hosts, settings.dev and scope["path"].startswith(API)
        if not (hosts or guarded):
            return None
        request = request_of_scope(scope)
        if not request.host_allowed(hosts):
            return self._refused(
                scope, request, HTTPStatus.MISDIRECTED_REQUEST, other_host(request, hosts)
            )
        if guarded and request.judge_page(settings.origins) is Page.FOREIGN:
            why = foreign_page(request, settings.origins)
            return self._refused(scope, request, HTTPStatus.FORBIDDEN, why)
        return None

    def _refused(self, scope: Any, request: Request, status: HTTPStatus, why: Why) -> Answer:
        refusals, route = self._node().refusals, ROUTES.get(request.path)
        if route is None:
            path, address = request.path[:_SHOWN], request.address
            refusals.note(why, "request", status=int(status), path=path, address=address)
        else:
            refusals.note(why, route.name, status=int(status), address=request.address)
        answer = explained(refusals, answer_status(status), why)
        if is_api(request.path):
            told = why if refusals.explaining else Why(why.cause, status.phrase.lower())
            return in_mode_of(scope, CallRefusal(status, told, answer.headers))
        return answer
