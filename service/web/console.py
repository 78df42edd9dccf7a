"""The console: a page to subscribe, publish and watch with. For development mode only.

It has no rights of its own. What it does goes through the same `/ws`, `/events` and `/api/publish`
as everybody's requests, which development mode leaves open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, request
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from service.web.pages import Pages

_FOLDER: Final = Path(__file__).parent / "static"
# No script, style, image or connection but ours, no frame around us.
_POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_console() -> Blueprint:
    """`/console`, what it needs under `/console/`, and `/` where nothing else is."""
    console = Blueprint("console", __name__)
    pages = Pages(_FOLDER, _POLICY)

    @console.get("/console")
    async def page() -> ResponseReturnValue:
        return await pages.send("console.html")

    @console.get("/console/<any('console.js', 'console.css', 'icon.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await pages.send(name)

    # An application may be mounted on `/` later, and wins; so this is no route.
    @console.app_errorhandler(NotFound)
    async def front(error: NotFound) -> ResponseReturnValue | NotFound:
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return await pages.send("console.html")
        return error

    return console
