"""Takes `path_prefix` off, so that all code behind the front knows paths without a prefix.

The native front compares targets with the prefix in them (`targets`). All other requests pass
`PrefixedApp`, in front of every other ASGI application. Rule: a prefix counts only as it is
written. `/%72ealtime/ws` and `//realtime/ws` are other paths, which are not found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from repeater.api.answers import ERROR_MODE_HEADER, TRANSPORT_MODE, CallRefusal
from repeater.api.wrong_request import API, name_of
from repeater.causes import Why
from repeater.front.reasons import explained, outside_prefix
from repeater.front.request import request_of_scope
from repeater.front.routes import ROUTES
from repeater.protocol.http.answer import Answer, answer_status
from repeater.protocol.http.fault import Field, split_url
from repeater.transports.asgi import Receive, Send, refuse

if TYPE_CHECKING:
    from repeater.clients.refusals import Refusals

_ERROR_MODE: Final = ERROR_MODE_HEADER.lower().encode()
_SHOWN: Final = 200
"""Characters of a stranger's path that a line of the log shows."""


def targets(prefix: str, paths: Iterable[str]) -> frozenset[bytes]:
    """The paths as requests name them, with the prefix."""
    return frozenset(f"{prefix}{path}".encode() for path in paths)


class PrefixedApp:
    """An ASGI application: gives `app` the paths under the prefix, and answers 404 to all others.

    `app` gets the paths without the prefix; `root_path` of the scope is the prefix.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        prefix: str,
        refusals: Callable[[], Refusals | None] = lambda: None,
    ) -> None:
        """Put `prefix` behind the `root_path` that the ASGI server gives, as a mount does.

        `refusals` returns where it is noted that a path of ours came without the prefix.
        """
        self._app = app
        self._prefix = prefix
        self._refusals = refusals

    async def __call__(self, scope: Any, receive: Receive, send: Send, *more: Any) -> None:
        """Serve one ASGI connection; `more` is what Hypercorn's wrapped applications take."""
        if scope["type"] in ("http", "websocket"):
            prefix = scope.get("root_path", "") + self._prefix
            if prefix:
                scope = in_origin_form(scope)
                raw = _raw_path(scope)
                if not raw.startswith(f"{prefix}/".encode()):
                    await refuse(scope, receive, send, self._outside(scope, raw, prefix))
                    return
                scope = _inside(scope, raw, prefix)
        await self._app(scope, receive, send, *more)

    def _outside(self, scope: Any, raw: bytes, prefix: str) -> Answer:
        """404; for the prefix alone the way to its page, whose relative links need the slash."""
        if raw == prefix.encode() and scope.get("method") in ("GET", "HEAD"):
            return answer_status(HTTPStatus.PERMANENT_REDIRECT, (("Location", f"{prefix}/"),))
        path, refusals = raw.decode("latin-1"), self._refusals()
        if refusals is not None and (path in ROUTES or path.startswith(API)):
            return _lacking(scope, path, prefix, refusals)
        return answer_status(HTTPStatus.NOT_FOUND)


def _lacking(scope: Any, path: str, prefix: str, refusals: Refusals) -> Answer:
    """404 to a path of ours that lacks the prefix, which is noted; to a call in JSON."""
    request, why = request_of_scope(scope), outside_prefix(path[:_SHOWN], prefix)
    what = ROUTES[path].name if path in ROUTES else f"api {name_of(path[:_SHOWN])}".rstrip()
    refusals.note(why, what, status=404, address=request.address)
    answer = explained(refusals, answer_status(HTTPStatus.NOT_FOUND), why)
    if path in ROUTES:
        return answer
    told = why if refusals.explaining else Why(why.cause, "")
    transport_mode = request.header(_ERROR_MODE) == TRANSPORT_MODE
    refusal = CallRefusal(HTTPStatus.NOT_FOUND, told, answer.headers)
    return refusal.answer(transport_mode=transport_mode)


def in_origin_form(scope: Any) -> Any:
    """Take a target in absolute form apart: its authority counts, not `Host` (RFC 9112, 3.2.2)."""
    raw = _raw_path(scope)
    parts = None if raw.startswith(b"/") else split_url(raw)
    if parts is None:
        return scope
    host, path = parts
    fields: list[Field] = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = path.partition(b"?")[0]
    return {
        **scope,
        "headers": [(b"host", host), *fields],
        "raw_path": path,
        "path": unquote(path.decode("latin-1")),
    }


def _raw_path(scope: Any) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode("latin-1", "replace")
    return raw


def _inside(scope: Any, raw: bytes, prefix: str) -> Any:
    """The scope with the paths behind the prefix. A prefix has no escapes: its length is one."""
    length = len(prefix)
    return {
        **scope,
        "root_path": prefix,
        "path": scope["path"][length:],
        "raw_path": raw[length:],
    }
