"""A running application of comments on a node, and a browser on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
from quart import Response
from quart.typing import TestClientProtocol as ClientProtocol
from quart_trio import QuartTrio

from repeater.comments.comments import Comments, open_comments
from repeater.comments.options import CommentsOptions
from repeater.config import CurrentSettings
from repeater.node import Node
from repeater.serving.application import create_app
from repeater.serving.extension import EXTENSION, load_settings
from repeater.serving.outgoing import open_outgoing
from repeater.testing import open_test_node
from tests.deadlines import LOOP_ANSWERS

JSON = {"Accept": "application/json"}
ANN = {"email": "ann@example.com", "password": "hunter2hunter", "name": "Ann"}


class Site(msgspec.Struct, frozen=True):
    """A running application and a browser on it."""

    app: QuartTrio
    node: Node
    comments: Comments
    browser: ClientProtocol

    async def post(
        self, path: str, form: Mapping[str, str] = {}, headers: Mapping[str, str] = {}, **more: Any
    ) -> Response:
        return await self.browser.post(path, form=dict(form), headers=dict(headers), **more)

    async def list(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await (await self.browser.get(f"/api/comments{query}")).json
        return found

    async def sign_in(self, account: Mapping[str, str] = ANN) -> None:
        await self.post("/api/signup", account)
        answer = await self.post("/api/signin", account)
        assert answer.location == "/comments.html"


@asynccontextmanager
async def open_site_on(node: Node, options: CommentsOptions) -> AsyncIterator[Site]:
    """The application on a node that runs, and what its transactions publish."""
    settings = load_settings(
        dev=True,
        comments=True,
        data_dir=str(options.data_dir),
        comments_database_url=options.database_url or None,
    )
    async with open_outgoing(node, settings), open_comments(node, options) as comments:
        blueprints = EXTENSION.blueprints(lambda: comments)
        app = create_app(node, CurrentSettings(settings), blueprints)
        yield Site(app, node, comments, app.test_client())


@asynccontextmanager
async def open_site(options: CommentsOptions) -> AsyncIterator[Site]:
    with trio.fail_after(LOOP_ANSWERS):
        async with open_test_node() as node, open_site_on(node, options) as site:
            yield site
