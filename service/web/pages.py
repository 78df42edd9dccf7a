"""Pages: a folder of small files, read once, sent with strict headers and an ETag."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Response, request
from quart.typing import ResponseReturnValue

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Pages:
    """The files of one folder, in memory. Lives as long as the application that sends them."""

    def __init__(self, folder: Path, policy: str) -> None:
        """Read them all; `policy` is their Content-Security-Policy."""
        self._files = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _TYPES
        }
        self._headers = {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    async def send(self, name: str) -> ResponseReturnValue:
        """Answer the request with this file, or with 304 where the client has it.

        Raises:
            KeyError: there is no such file; routes name those that there are.
        """
        kind = _TYPES[Path(name).suffix]
        response = Response(self._files[name], 200, self._headers, content_type=kind)
        await response.add_etag()
        return await response.make_conditional(request)
