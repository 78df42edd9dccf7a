"""The Quart-Trio application around a node: REST, health, pages, and the subscription paths.

The application runs no tasks of its own: `repeater/serving/` makes it and runs the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from quart import Blueprint, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, InternalServerError

from repeater.api.methods import BODY_TIMEOUT
from repeater.config import CurrentSettings
from repeater.node import Node
from repeater.web.api import answer_error, create_api
from repeater.web.body_limit import BodyLimit
from repeater.web.console import create_console
from repeater.web.faults import FaultCheck, exact_paths
from repeater.web.loop_check import LoopCheck
from repeater.web.metrics import create_registry
from repeater.web.misplaced import MisplacedCheck
from repeater.web.observe import create_observe
from repeater.web.paced_websocket import PacedWebsockets, paced
from repeater.web.pages import PageCheck
from repeater.web.reference import create_reference
from repeater.web.scrape import register
from repeater.web.stream import StreamRoute
from repeater.web.subscriptions import SubscriptionRoutes

if TYPE_CHECKING:
    from repeater.front.accept import AcceptorStatistics


_NOT_STORED: Final = ("/api/", "/health", "/metrics")


class Holder:
    """Holds the node for the routes: a stock ASGI server starts the node after the routes exist."""

    def __init__(
        self, node: Node | None = None, acceptor: Callable[[], AcceptorStatistics] | None = None
    ) -> None:
        self.node = node
        self._acceptor = acceptor
        self._registry: CollectorRegistry | None = None

    def __call__(self) -> Node:
        """Return the running node."""
        assert self.node is not None, "the application was not started"
        return self.node

    def registry(self) -> CollectorRegistry:
        """Return the metrics, which are made at the first call."""
        if self._registry is None:
            self._registry = create_registry(self(), self._acceptor)
        return self._registry


class Application(QuartTrio):
    """Quart, whose failed requests are noted as every other failure for one connection is."""

    def __init__(self, holder: Holder) -> None:
        super().__init__("repeater.web", static_folder=None)
        self._holder = holder

    async def asgi_app(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI connection; `root_path` was taken off its path already.

        Quart takes it off, too, and begins each redirect and each `url_for` with it.
        """
        if root_path := scope.get("root_path"):
            scope = {**scope, "path": f"{root_path}{scope['path']}"}
        await super().asgi_app(scope, receive, send)

    async def handle_http_exception(self, *told: Any) -> Any:
        """Answer below `/api` with JSON, whatever other code answers to such errors elsewhere.

        `told` ends with the error; for what comes before it, see `log_exception`.
        """
        ours = self._in_json(told[-1])
        return await super().handle_http_exception(*told) if ours is None else ours

    async def answer_failure(self, error: InternalServerError) -> Any:
        """Answer a request that failed: below `/api` with JSON, elsewhere as Quart does."""
        ours = self._in_json(error)
        return error if ours is None else ours

    def _in_json(self, error: HTTPException) -> Any:
        return None if self._holder.node is None else answer_error(self._holder.node, error)

    def log_exception(self, *told: Any) -> None:
        """Count a failure, and log it at a bounded rate: whoever found a mistake will repeat it.

        `told` ends with what `sys.exc_info` returned. From Quart 0.23 on, the request's context
        comes before it.
        """
        node, error = self._holder.node, told[-1][1]
        if node is None or error is None:  # before the node has started
            super().log_exception(*told)
        else:
            node.failures.note("page", error)


def make_app(
    holder: Holder, settings: CurrentSettings, blueprints: Sequence[Blueprint] = ()
) -> QuartTrio:
    """Make the application.

    Args:
        holder: Returns the node, from the first request on.
        settings: Returns the settings in force.
        blueprints: Routes of an application that runs in the same process.
    """
    app = Application(holder)
    if holder.node is not None:
        register(holder.node, holder.registry)
    app.config["MAX_CONTENT_LENGTH"] = settings().body_limit
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # `//api/publish` is another path than `/api/publish`
    app.after_request(_not_stored)
    app.register_error_handler(InternalServerError, app.answer_failure)
    key = settings.api_key
    for blueprint in blueprints:  # first, because of two routes for a path Quart takes the earlier
        app.register_blueprint(blueprint)
    ours = [
        create_api(holder, key),
        create_observe(holder, settings, holder.registry),
        create_reference(),
        *([create_console()] if settings().dev else []),
    ]
    for blueprint in ours:  # under names that no other blueprint has
        app.register_blueprint(blueprint, name=f"repeater_{blueprint.name}")
    app.websocket_class = paced(app.websocket_class)
    app.asgi_app = MisplacedCheck(  # type: ignore[method-assign]
        app.asgi_app, app, holder
    )
    app.asgi_app = BodyLimit(  # type: ignore[method-assign]
        app.asgi_app, holder, settings().body_limit
    )
    app.asgi_app = PacedWebsockets(app.asgi_app)  # type: ignore[method-assign]
    app.asgi_app = StreamRoute(  # type: ignore[method-assign]
        app.asgi_app, holder, key, settings().body_limit
    )
    app.asgi_app = SubscriptionRoutes(  # type: ignore[method-assign]
        app.asgi_app, holder, settings
    )
    app.asgi_app = PageCheck(app.asgi_app, holder, settings)  # type: ignore[method-assign]
    app.asgi_app = FaultCheck(  # type: ignore[method-assign]
        app.asgi_app, partial(exact_paths, app)
    )
    app.asgi_app = LoopCheck(app.asgi_app)  # type: ignore[method-assign]
    return app


async def _not_stored(response: Response) -> Response:
    """Tell caches not to keep an answer of ours, a 404 included; a route may say otherwise."""
    if request.path.startswith(_NOT_STORED):
        response.headers.setdefault("Cache-Control", "no-store")
    return response
