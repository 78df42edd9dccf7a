"""A back end for tests: notes what it is asked, and answers as it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from repeater.access.grants import TokenVerifier
from repeater.access.http_client import make_client
from repeater.backend.http import HTTPBackend
from repeater.backend.options import CallbackOptions
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions

URL = "http://app.example/"
URLS = {f"{kind}_url": f"{URL}{kind}" for kind in ("connect", "refresh", "subscribe")} | {
    f"{kind}_url": f"{URL}{kind}" for kind in ("publish", "sub_refresh", "rpc")
}
ASKED = ChannelOptions(
    subscribe_proxy_enabled=True, publish_proxy_enabled=True, sub_refresh_proxy_enabled=True
)

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Application:
    """Answers each kind with what is in `answers`: a result, a response, an error, or a maker."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answers: dict[str, Any] = {}
        self.delays: dict[str, float] = {}

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        kind = request.url.path[1:]
        await trio.sleep(self.delays.get(kind, 0))
        found = self.answers.get(kind, {"result": {}})
        if callable(found):
            found = await found()
        if isinstance(found, Exception):
            raise found
        if isinstance(found, httpx.Response):
            return httpx.Response(
                found.status_code, headers=found.headers, content=pieces(found.content)
            )
        content = found if isinstance(found, bytes) else dumps(found)
        return httpx.Response(200, content=pieces(content))

    def asked(self, kind: str) -> list[Any]:
        """The bodies of this kind, oldest first."""
        return [
            json.loads(one.content) for one in self.requests if one.url.path.endswith(f"/{kind}")
        ]


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """The body as it comes over a socket, bit by bit."""
    for start in range(0, len(content), 8_192):
        yield content[start : start + 8_192]
        await trio.lowlevel.checkpoint()


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


@asynccontextmanager
async def open_asking_node(
    application: Application,
    node_options: NodeOptions | None = None,
    verifier: TokenVerifier | None = None,
    **options: Any,
) -> AsyncIterator[Node]:
    """A node that leaves everything to the application."""
    callbacks = CallbackOptions(**{**URLS, **options})
    async with make_client(httpx.MockTransport(application.answer)) as client:
        backend = HTTPBackend(callbacks, client)
        chosen = node_options or NodeOptions(channel=ASKED)
        async with open_node(chosen, verifier=verifier, backend=backend) as node:
            yield node
