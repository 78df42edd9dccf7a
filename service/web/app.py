"""The Quart-Trio application: REST, health, and the subscription paths for ASGI.

Our server makes it with its node. A stock ASGI server makes it with none, and the application
opens its own:  hypercorn -k trio 'service.web.app:create_app()'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from quart_trio import QuartTrio

from service.assembly import open_configured_node
from service.config import Settings, load_settings
from service.node import Node
from service.web.api import create_api
from service.web.connect import create_connect
from service.web.observe import create_observe
from service.web.streams import StreamRoutes

if TYPE_CHECKING:
    from service.comments.comments import Comments


class NodeHolder:
    """Where the routes find the node, which a stock ASGI server has running only later."""

    def __init__(self, node: Node | None, comments: Comments | None) -> None:
        self._node = node
        self._comments = comments

    def __call__(self) -> Node:
        """The running node."""
        assert self._node is not None, "the application was not started"
        return self._node

    def comments(self) -> Comments:
        """The running bundled application."""
        assert self._comments is not None, "the application was not started"
        return self._comments

    async def hold(self, settings: Settings) -> AsyncGenerator[None, None]:
        """Run a node for as long as the ASGI server serves (Quart's lifespan)."""
        async with (
            open_configured_node(settings) as self._node,
            open_bundled(self._node, settings) as self._comments,
        ):
            yield


@asynccontextmanager
async def open_bundled(node: Node, settings: Settings) -> AsyncIterator[Comments | None]:
    """Run the bundled application for as long as the block lasts; None if it is off.

    Raises:
        CommentsError: it can't start.
    """
    options = settings.comments_options()
    if options is None:
        yield None
        return
    from service.comments.comments import open_comments  # the database only where it is used

    async with open_comments(node, options) as comments:
        yield comments


def create_app(
    node: Node | None = None,
    settings: Settings | None = None,
    comments: Comments | None = None,
) -> QuartTrio:
    """Make the application.

    Args:
        node: A running node, whose owner outlives the application; None to open one by itself.
        settings: Defaults to what the environment says.
        comments: The running bundled application, from the node's owner; None to leave it out.
    """
    settings = settings or load_settings()
    app = QuartTrio("service.web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    holder = NodeHolder(node, comments)
    if node is None:
        app.while_serving(lambda: holder.hold(settings))
    app.register_blueprint(create_api(holder, settings))
    app.register_blueprint(create_connect(holder, settings))
    app.register_blueprint(create_observe(holder))
    if comments is not None or (node is None and settings.comments_on):
        from service.comments.pages import create_pages
        from service.comments.routes import create_comments

        app.register_blueprint(create_comments(holder.comments))
        app.register_blueprint(create_pages())
    app.asgi_app = StreamRoutes(app.asgi_app, holder, settings)  # type: ignore[method-assign]
    return app
