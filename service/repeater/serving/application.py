"""The ASGI application: around a running node of the caller, or with a node of its own.

A stock ASGI server uses the second:  hypercorn -k trio 'repeater.serving.application:create_app()'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from quart import Blueprint
from quart_trio import QuartTrio

from repeater.config import CurrentSettings, Settings, given_settings
from repeater.front.path_prefix import PrefixedApp
from repeater.node import Node
from repeater.serving.assembly import open_assembly
from repeater.serving.extension import EXTENSION, load_settings, open_extension
from repeater.web.app import Holder, make_app


def create_app(
    node: Node | None = None,
    settings: CurrentSettings | Settings | None = None,
    blueprints: Sequence[Blueprint] = (),
) -> QuartTrio:
    """Make the application, for an ASGI server.

    Args:
        node: A running node, whose owner outlives the application. None to open one, and the
            application that the settings ask for, while the ASGI server serves.
        settings: The settings in force. With a node the default follows from the node's options:
            an `insecure` node has an open server API; any other node has none without an `api_key`
            in the settings. Without a node the default is read from the file and the environment.
        blueprints: Routes of an application that runs in the same process.

    Its paths begin with the `root_path` of the ASGI server, and then with `path_prefix`.
    """
    if settings is None and node is not None:
        settings = given_settings(node.options, own_backend=node.backend is not None)
    elif settings is None:
        settings = load_settings()
    current = settings if isinstance(settings, CurrentSettings) else CurrentSettings(settings)
    if node is not None:
        holder = Holder(node)
        return _prefixed(make_app(holder, current, blueprints), holder, current)
    lifespan = _Lifespan(current)
    if EXTENSION.is_on(current()):
        blueprints = (*blueprints, *EXTENSION.blueprints(lambda: lifespan.application))
    app = make_app(lifespan.holder, current, blueprints)
    app.while_serving(lifespan.run)
    return _prefixed(app, lifespan.holder, current)


def _prefixed(app: QuartTrio, node: Holder, settings: CurrentSettings) -> QuartTrio:
    app.asgi_app = PrefixedApp(  # type: ignore[method-assign]
        app.asgi_app, settings().path_prefix, lambda: node().refusals
    )
    return app


class _Lifespan:
    """A node and an application that run for as long as an ASGI server serves."""

    def __init__(self, settings: CurrentSettings) -> None:
        self._settings = settings
        self.holder = Holder()
        self.application: Any = None

    async def run(self) -> AsyncGenerator[None, None]:
        """Quart's lifespan: once, around all requests."""
        async with (
            open_assembly(self._settings) as assembly,
            open_extension(assembly.node, self._settings()) as self.application,
        ):
            self.holder.node = assembly.node
            yield
