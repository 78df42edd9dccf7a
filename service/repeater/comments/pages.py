"""The routes of the pages, which are a few small files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint
from quart.typing import ResponseReturnValue

from repeater.web.assets import Assets

_FOLDER: Final = Path(__file__).parent / "static"


def create_pages() -> Blueprint:
    """Routes for `/`, for the three pages by name, and for their script, style and icon."""
    pages = Blueprint("comments_pages", __name__)
    assets = Assets(_FOLDER)

    @pages.get("/")
    async def front() -> ResponseReturnValue:
        return await assets.send("index.html")

    @pages.get("/<any('index.html', 'login.html', 'comments.html'):name>")
    async def page(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    @pages.get("/comments/<any('app.js', 'style.css', 'icon.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    return pages
