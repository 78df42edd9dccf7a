"""The pages: a handful of small files, read once, sent with strict headers and an ETag."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, Response, request
from quart.typing import ResponseReturnValue

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    # No script or style but ours, no frame around us: markup that got in would be inert.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def create_pages() -> Blueprint:
    """`/`, the three pages by their names, and what they need under `/comments/`."""
    pages = Blueprint("comments_pages", __name__)
    files = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    async def send(name: str) -> ResponseReturnValue:
        kind = _TYPES[Path(name).suffix]
        response = Response(files[name], 200, _HEADERS, content_type=kind)
        await response.add_etag()
        return await response.make_conditional(request)

    @pages.get("/")
    async def front() -> ResponseReturnValue:
        return await send("index.html")

    @pages.get("/<any('index.html', 'login.html', 'comments.html'):name>")
    async def page(name: str) -> ResponseReturnValue:
        return await send(name)

    @pages.get("/comments/<any('app.js', 'style.css', 'icon.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await send(name)

    return pages
