"""The Quart-Trio application: REST, health, and the subscription paths for ASGI.

Our server makes it with its node. A stock ASGI server makes it with none, and the application
opens its own:  hypercorn -k trio 'repeater.web.app:create_app()'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from repeater.api.methods import BODY_TIMEOUT
from repeater.config import CurrentSettings, Settings, load_settings
from repeater.node import Node
from repeater.serving.assembly import open_assembly
from repeater.web.api import create_api
from repeater.web.console import create_console
from repeater.web.metrics import create_registry
from repeater.web.observe import create_observe
from repeater.web.reference import create_reference
from repeater.web.stream import StreamRoute
from repeater.web.subscriptions import SubscriptionRoutes

if TYPE_CHECKING:
    from repeater.comments.comments import Comments
    from repeater.front.accept import DoorStatistics


class Holder:
    """Where the routes find the node, which a stock ASGI server has running only later."""

    def __init__(
        self,
        node: Node | None,
        comments: Comments | None,
        door: Callable[[], DoorStatistics] | None,
    ) -> None:
        self._node = node
        self._comments = comments
        self._door = door
        self._registry: CollectorRegistry | None = None

    def __call__(self) -> Node:
        """The running node."""
        assert self._node is not None, "the application was not started"
        return self._node

    def registry(self) -> CollectorRegistry:
        """The metrics, made when first asked for."""
        if self._registry is None:
            self._registry = create_registry(self(), self._door)
        return self._registry

    def comments(self) -> Comments:
        """The running bundled application."""
        assert self._comments is not None, "the application was not started"
        return self._comments

    async def hold(self, settings: CurrentSettings) -> AsyncGenerator[None, None]:
        """Run a node for as long as the ASGI server serves (Quart's lifespan)."""
        async with (
            open_assembly(settings) as assembly,
            open_bundled(assembly.node, settings()) as self._comments,
        ):
            self._node = assembly.node
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
    from repeater.comments.comments import open_comments  # the database only where it is used

    async with open_comments(node, options) as comments:
        yield comments


def create_app(
    node: Node | None = None,
    settings: CurrentSettings | None = None,
    comments: Comments | None = None,
    *,
    door: Callable[[], DoorStatistics] | None = None,
) -> QuartTrio:
    """Make the application.

    Args:
        node: A running node, whose owner outlives the application; None to open one by itself.
        settings: Those in force; defaults to what the environment says.
        comments: The running bundled application, from the node's owner; None to leave it out.
        door: What our own server's door counts.
    """
    settings = settings or CurrentSettings(load_settings())
    app = QuartTrio("repeater.web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings().body_limit
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    holder = Holder(node, comments, door)
    if node is None:
        app.while_serving(lambda: holder.hold(settings))
    key = settings.api_key
    app.register_blueprint(create_api(holder, key))
    app.register_blueprint(create_observe(holder, settings, holder.registry))
    if settings().dev:
        app.register_blueprint(create_console())
    app.register_blueprint(create_reference())
    if comments is not None or (node is None and settings().comments_on):
        from repeater.comments.pages import create_pages
        from repeater.comments.routes import create_comments

        app.register_blueprint(create_comments(holder.comments))
        app.register_blueprint(create_pages())
    app.asgi_app = StreamRoute(  # type: ignore[method-assign]
        app.asgi_app, holder, key, settings().body_limit
    )
    app.asgi_app = SubscriptionRoutes(  # type: ignore[method-assign]
        app.asgi_app, holder, settings
    )
    return app
