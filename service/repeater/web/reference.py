"""`/openapi.json`, and `/docs`, a page that shows it: our own, without a byte from elsewhere.

Open to everybody: there is nothing in it that is not in the source code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint
from quart.typing import ResponseReturnValue

from repeater.api.openapi import document
from repeater.web.assets import Assets, send_bytes

_FOLDER: Final = Path(__file__).parent / "static"


def create_reference() -> Blueprint:
    """The description, the page, and the files that it needs."""
    reference = Blueprint("reference", __name__)
    assets = Assets(_FOLDER)

    @reference.get("/openapi.json")
    async def openapi() -> ResponseReturnValue:
        return await send_bytes(document(), "application/json")

    @reference.get("/docs")
    async def page() -> ResponseReturnValue:
        return await assets.send("reference.html")

    @reference.get("/docs/<any('reference.js', 'reference.css', 'reference.svg'):name>")
    async def part(name: str) -> ResponseReturnValue:
        return await assets.send(name)

    return reference
