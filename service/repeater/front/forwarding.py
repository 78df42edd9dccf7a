"""What Hypercorn's application is told of a client behind proxies: one small ASGI wrapper.

Hypercorn's own (`ProxyFixMiddleware`) believes whoever sends the headers; this one asks who it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from repeater.front.trusted_proxies import TrustedProxies

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGISendCallable, Scope


class ForwardedApp:
    """The application as one connection sees it. Lives as long as the connection."""

    def __init__(self, app: AppWrapper, peer: tuple[str, int], proxies: TrustedProxies) -> None:
        """Take what the connection itself says of its client; its requests may know more."""
        self._app = app
        self._peer = peer
        self._proxies = proxies

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """One request, with the address and scheme of its client."""
        if scope["type"] != "lifespan":
            self._correct(scope)  # type: ignore[arg-type]
        await self._app(scope, receive, send, sync_spawn, call_soon)

    def _correct(self, scope: dict[str, Any]) -> None:
        address = str(self._peer[0])
        scope["client"] = self._peer[:2]
        if not self._proxies.trusts(address):
            return
        headers = (
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        found = self._proxies.forwarded(address, headers)
        if found.address:
            scope["client"] = (found.address, 0)
        if found.scheme:
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = plain + ("s" if found.scheme == "https" else "")
