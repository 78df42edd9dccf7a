"""The Quart-Trio application: REST, health, and the subscription paths for ASGI.

Our server makes it with its node. A stock ASGI server makes it with none, and the application
opens its own:  hypercorn -k trio 'service.web.app:create_app()'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from service.assembly import Assembly, open_assembly
from service.config import Settings, load_settings
from service.node import Node
from service.web.api import create_api
from service.web.connect import create_connect
from service.web.metrics import create_registry
from service.web.observe import create_observe

if TYPE_CHECKING:
    from service.door import DoorStatistics


class Holder:
    """Where the routes find the node, which a stock ASGI server has running only later."""

    def __init__(
        self, assembly: Assembly | None, door: Callable[[], DoorStatistics] | None
    ) -> None:
        self._assembly = assembly
        self._door = door
        self._registry: CollectorRegistry | None = None

    @property
    def assembly(self) -> Assembly:
        """The running node and its settings."""
        assert self._assembly is not None, "the application was not started"
        return self._assembly

    def node(self) -> Node:
        """The running node."""
        return self.assembly.node

    def settings(self) -> Settings:
        """The settings in force."""
        return self.assembly.settings()

    def registry(self) -> CollectorRegistry:
        """The metrics, made when first asked for."""
        if self._registry is None:
            self._registry = create_registry(self.node(), self.assembly.verifier, self._door)
        return self._registry

    async def hold(self, settings: Settings) -> AsyncGenerator[None, None]:
        """Run a node for as long as the ASGI server serves (Quart's lifespan)."""
        async with open_assembly(settings) as self._assembly:
            yield


def create_app(
    assembly: Assembly | None = None, door: Callable[[], DoorStatistics] | None = None
) -> QuartTrio:
    """Make the application.

    Args:
        assembly: A running node, whose owner outlives the application; None to open one by
            itself, as the environment says.
        door: What our own server's door counts.
    """
    settings = assembly.settings() if assembly else load_settings()
    app = QuartTrio("service.web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    holder = Holder(assembly, door)
    if assembly is None:
        app.while_serving(lambda: holder.hold(settings))
    app.register_blueprint(create_api(holder.node, holder.settings))
    app.register_blueprint(create_connect(holder.node, holder.settings))
    app.register_blueprint(create_observe(holder.node, holder.settings, holder.registry))
    return app
