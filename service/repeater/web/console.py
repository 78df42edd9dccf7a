"""The console: a page to subscribe, to publish, and to watch messages. In development mode only.

The console has no rights of its own. It uses the same `/ws`, `/events` and `/api/publish` as every
other client; development mode leaves these open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, has_request_context, request
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from repeater.web.assets import Assets

_FOLDER: Final = Path(__file__).parent / "static"


def create_console() -> Blueprint:
    """Make `/console`, its files under `/console/`, and a page for `/` if no other route has it."""
    console = Blueprint("console", __name__)
    assets = Assets(_FOLDER)

    @console.get("/console")
    async def page() -> ResponseReturnValue:
        return await assets.send("console.html")

    @console.get("/console/<any('console.js', 'console.css', 'console.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    # Not a route, because an application that is mounted on `/` later must win.
    @console.app_errorhandler(NotFound)
    async def front(error: NotFound) -> ResponseReturnValue | NotFound:
        # A WebSocket has no `request`; to it, `/` is an unknown path as any other.
        if has_request_context() and request.path == "/" and request.method in ("GET", "HEAD"):
            return await assets.send("front.html")
        return error

    return console
