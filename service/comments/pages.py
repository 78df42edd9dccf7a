"""The pages: a handful of small files that run no script or style but ours."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint
from quart.typing import ResponseReturnValue

from service.web.pages import Pages

_FOLDER: Final = Path(__file__).parent / "static"
# No script or style but ours, no frame around us: markup that got in would be inert.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def create_pages() -> Blueprint:
    """`/`, the three pages by their names, and what they need under `/comments/`."""
    pages = Blueprint("comments_pages", __name__)
    files = Pages(_FOLDER, _POLICY)

    @pages.get("/")
    async def front() -> ResponseReturnValue:
        return await files.send("index.html")

    @pages.get("/<any('index.html', 'login.html', 'comments.html'):name>")
    async def page(name: str) -> ResponseReturnValue:
        return await files.send(name)

    @pages.get("/comments/<any('app.js', 'style.css', 'icon.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await files.send(name)

    return pages
