"""The Quart-Trio application: REST, health, and the subscription paths for ASGI.

Our server makes it with its node. A stock ASGI server makes it with none, and the application
opens its own:  hypercorn -k trio 'service.web.app:create_app()'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from quart_trio import QuartTrio

from service.assembly import open_configured_node
from service.config import Settings, load_settings
from service.node import Node
from service.web.api import create_api
from service.web.connect import create_connect
from service.web.observe import create_observe
from service.web.streams import StreamRoutes


class NodeHolder:
    """Where the routes find the node, which a stock ASGI server has running only later."""

    def __init__(self, node: Node | None) -> None:
        self._node = node

    def __call__(self) -> Node:
        """The running node."""
        assert self._node is not None, "the application was not started"
        return self._node

    async def hold(self, settings: Settings) -> AsyncGenerator[None, None]:
        """Run a node for as long as the ASGI server serves (Quart's lifespan)."""
        async with open_configured_node(settings) as self._node:
            yield


def create_app(node: Node | None = None, settings: Settings | None = None) -> QuartTrio:
    """Make the application.

    Args:
        node: A running node, whose owner outlives the application; None to open one by itself.
        settings: Defaults to what the environment says.
    """
    settings = settings or load_settings()
    app = QuartTrio("service.web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    holder = NodeHolder(node)
    if node is None:
        app.while_serving(lambda: holder.hold(settings))
    app.register_blueprint(create_api(holder, settings))
    app.register_blueprint(create_connect(holder, settings))
    app.register_blueprint(create_observe(holder))
    app.asgi_app = StreamRoutes(app.asgi_app, holder, settings)  # type: ignore[method-assign]
    return app
