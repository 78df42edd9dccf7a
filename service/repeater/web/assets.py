"""A handful of small files, read once, sent with strict headers and an ETag."""

from __future__ import annotations

import functools
import hashlib
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
    # Only our own scripts and styles, and no frame around us: injected markup can do nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@functools.lru_cache(maxsize=64)
def _etag(content: bytes) -> str:
    """A digest of the content, made once: a stranger may ask for the same page all day."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class Assets:
    """The pages of one folder, with their scripts, styles and images. Owns only their bytes."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _TYPES
        }

    async def send(self, name: str) -> Response:
        """Return the file of this name, or 304 if the browser already has it."""
        return await send_bytes(self._files[name], _TYPES[Path(name).suffix])


async def send_bytes(content: bytes, kind: str) -> Response:
    """Return content that never changes while the process runs, or 304 if the browser has it."""
    etag = _etag(content)
    # Not `make_conditional`: it reads `If-Modified-Since`, and fails on a year of 20 digits. And a
    # list of 4,000 tags is only searched.
    known = request.headers.get("If-None-Match", "").find(f'"{etag}"') >= 0
    response = Response(b"" if known else content, 304 if known else 200, _HEADERS)
    response.set_etag(etag)
    if not known:
        response.content_type = kind
    return response
