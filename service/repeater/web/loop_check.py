"""Refuses to serve under asyncio, in one sentence: the application and its node need Trio.

Without this, a server on asyncio says that it has started, and every request waits for ever.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from repeater.transports.asgi import Application, Receive, Send

NEEDS_TRIO: Final = (
    "Repeater runs on Trio, and this ASGI server runs on asyncio: use `repeater serve`, or "
    "`hypercorn -k trio`"
)


class LoopCheck:
    """An ASGI application: fails the start of a server that does not run on Trio.

    A server that does not ask before it serves (`--lifespan off`) gets the error at each request.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection.

        Raises:
            RuntimeError: the server does not run on Trio.
        """
        if trio.lowlevel.in_trio_run():
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await receive()  # `lifespan.startup`: an answer is allowed behind it only
            await send({"type": "lifespan.startup.failed", "message": NEEDS_TRIO})
        else:
            raise RuntimeError(NEEDS_TRIO)
