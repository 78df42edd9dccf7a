"""Subscribers that come by a path with something in front of ours: found by nobody, they are noted.

So it is when a proxy passes its prefix on, and `path_prefix` is not set. Their answer is 404, like
that of every unknown path; a route of an application may have such a path.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from repeater.front.reasons import explained, misplaced
from repeater.front.request import request_of_scope
from repeater.front.routes import ROUTES
from repeater.protocol.http.answer import Answer, answer_status
from repeater.transports.asgi import Application, Receive, Send, refuse

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from repeater.node import Node

_ENDINGS: Final = tuple(ROUTES)


class MisplacedCheck:
    """An ASGI application: refuses misplaced subscribers, and gives all others to `app`."""

    def __init__(self, app: Application, quart: QuartTrio, node: Callable[[], Node]) -> None:
        """Ask `quart` whether it has a route for a path."""
        self._app = app
        self._quart = quart
        self._node = node

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        path = scope.get("path", "")
        if path.endswith(_ENDINGS) and path not in ROUTES and not self._has_route(scope):
            await refuse(scope, receive, send, self._refusal(scope))
        else:
            await self._app(scope, receive, send)

    def _has_route(self, scope: Any) -> bool:
        """Whether the application has a route for the path and the method."""
        routes = self._quart.url_map.bind("", url_scheme=scope["scheme"])
        return routes.test(scope["path"], scope.get("method"))

    def _refusal(self, scope: Any) -> Answer:
        """The answer, which is noted."""
        path, refusals = scope["path"], self._node().refusals
        ending = max((one for one in _ENDINGS if path.endswith(one)), key=len)
        prefix = f"{scope.get('root_path', '')}{path.removesuffix(ending)}"
        why = misplaced(f"{prefix}{ending}", prefix)
        answer = answer_status(HTTPStatus.NOT_FOUND)
        address = request_of_scope(scope).address
        refusals.note(why, ROUTES[ending].name, status=answer.status, address=address)
        return explained(refusals, answer, why)
