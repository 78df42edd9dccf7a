"""Requests that an ASGI server lets through, judged by the rules of the native paths.

For every way to the application: behind the native paths, inside HTTP/2, and under a stock ASGI
server. What a server has already taken apart, such as chunks, is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from repeater.api.answers import CallRefusal
from repeater.api.wrong_request import is_api
from repeater.causes import Cause, Why
from repeater.front.path_prefix import in_origin_form
from repeater.front.routes import ROUTES
from repeater.protocol.http.answer import Answer, answer_status
from repeater.protocol.http.fault import find_scope_fault
from repeater.transports.asgi import Application, Receive, Send, refuse
from repeater.web.api import in_mode_of
from repeater.web.stream import STREAM_PATH
from repeater.web.subscriptions import EMULATION_PATH

if TYPE_CHECKING:
    from quart_trio import QuartTrio

_OWN: Final = {*ROUTES, EMULATION_PATH, STREAM_PATH}


class FaultCheck:
    """An ASGI application: refuses requests with a fault, and gives all others to `app`."""

    def __init__(self, app: Application, exact_paths: Callable[[], set[str]]) -> None:
        """Keep `exact_paths`, which returns the paths that no escaped spelling may reach."""
        self._app = app
        self._exact_paths = exact_paths

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = in_origin_form(scope)
        answer = self._refusal(scope)
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, answer)

    def _refusal(self, scope: Any) -> Answer | None:
        old = scope["http_version"].startswith("1")
        fields = scope["headers"]
        if not old:  # a client of HTTP/2 may name the host twice (RFC 9113, section 8.3.1)
            fields = list(dict.fromkeys(fields))
        fault, api = find_scope_fault(fields), is_api(scope["path"])
        if fault is not None:
            close = (("Connection", "close"),) if old else ()
            if api:
                why = Why(Cause.REQUEST, fault.reason)
                return in_mode_of(scope, CallRefusal(fault.status, why, close))
            return answer_status(fault.status, close, f"{fault.status.phrase}: {fault.reason}")
        path = scope["path"]
        # A proxy's rule for `/metrics` must hold: `/%6detrics` and `//metrics` are other paths.
        escaped = b"%" in scope.get("raw_path", b"") and path in self._exact_paths()
        if escaped and api:
            why = Why(Cause.METHOD, "the path has escapes", "write it without '%'")
            return in_mode_of(scope, CallRefusal(HTTPStatus.NOT_FOUND, why))
        if escaped or path.startswith("//"):  # Quart drops slashes at the beginning
            return answer_status(HTTPStatus.NOT_FOUND)
        return None


def exact_paths(app: QuartTrio) -> set[str]:
    """The paths of subscriptions, and those of all routes without parameters."""
    return _OWN | {rule.rule for rule in app.url_map.iter_rules() if not rule.arguments}
