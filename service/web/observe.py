"""How the server is: for load balancers and people."""

from __future__ import annotations

from collections.abc import Callable

from quart import Blueprint
from quart.typing import ResponseReturnValue

from service.node import Node


def create_observe(node: Callable[[], Node]) -> Blueprint:
    """`GET /health`: 200 while the node takes clients, 503 once it drains."""
    observe = Blueprint("observe", __name__)

    @observe.get("/health")
    async def health() -> ResponseReturnValue:
        if node().draining:
            return {"status": "draining"}, 503
        return {"status": "ok"}, 200

    return observe
