"""`/openapi.json`, and `/docs`, our own page that shows it without files from other sites.

Open to everybody, since the description holds nothing that is not in the source code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, request
from quart.typing import ResponseReturnValue

from repeater.api.openapi import document
from repeater.web.assets import Assets, send_bytes

_FOLDER: Final = Path(__file__).parent / "static"


def create_reference() -> Blueprint:
    """Make the routes of the description, of the page, and of the page's files."""
    reference = Blueprint("reference", __name__)
    assets = Assets(_FOLDER)

    @reference.get("/openapi.json")
    async def openapi() -> ResponseReturnValue:
        return await send_bytes(document(request.root_path), "application/json")

    @reference.get("/docs")
    async def page() -> ResponseReturnValue:
        return await assets.send("reference.html")

    @reference.get("/docs/<any('reference.js', 'reference.css', 'reference.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    return reference
