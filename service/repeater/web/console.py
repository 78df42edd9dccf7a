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

from repeater.web.assets import Assets

_FOLDER: Final = Path(__file__).parent / "static"


def create_console() -> Blueprint:
    """`/console`, what it needs under `/console/`, and a page for `/` where nothing else is."""
    console = Blueprint("console", __name__)
    assets = Assets(_FOLDER)

    @console.get("/console")
    async def page() -> ResponseReturnValue:
        return await assets.send("console.html")

    @console.get("/console/<any('console.js', 'console.css', 'console.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    # An application may be mounted on `/` later, and wins; so this is not a route.
    @console.app_errorhandler(NotFound)
    async def front(error: NotFound) -> ResponseReturnValue | NotFound:
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return await assets.send("front.html")
        return error

    return console
