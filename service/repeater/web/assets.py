"""A handful of small files, read once, sent with strict headers and an ETag."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Response, request

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


class Assets:
    """The pages of one folder and what they need. Owns nothing but their bytes."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _TYPES
        }

    async def send(self, name: str) -> Response:
        """The file of this name, or 304 to who has it."""
        return await send_bytes(self._files[name], _TYPES[Path(name).suffix])


async def send_bytes(content: bytes, kind: str) -> Response:
    """What does not change while the process lives; 304 to who has it."""
    response = Response(content, 200, _HEADERS, content_type=kind)
    await response.add_etag()
    conditional: Response = await response.make_conditional(request)
    return conditional
