"""The server's health and metrics, for load balancers, orchestrators, Prometheus and people."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from quart import Blueprint, Response, request
from quart.typing import ResponseReturnValue

from repeater.causes import Cause, Why
from repeater.config import CurrentSettings
from repeater.errors import BrokerError
from repeater.front.request import request_of_scope
from repeater.front.responses import LIVE
from repeater.node import Node
from repeater.web.api import admits
from repeater.web.scrape import scrape

if TYPE_CHECKING:
    from repeater.config import Settings


_CLOSED: Final = Why(
    Cause.API_KEY,
    "the server has neither metrics_token nor API key, so nobody may read the metrics",
    "set metrics_token, or metrics_open = true",
)
_NO_KEY: Final = Why(
    Cause.API_KEY,
    "the request has neither the metrics' token nor the API key",
    "send Authorization: Bearer <metrics_token>, or set metrics_open = true",
)
_OTHER_KEY: Final = Why(
    Cause.API_KEY,
    "the request's key is neither the metrics' token nor the API key",
    "send metrics_token as Authorization: Bearer, or api_key as X-API-Key",
)


def create_observe(
    node: Callable[[], Node],
    settings: CurrentSettings,
    registry: Callable[[], CollectorRegistry],
) -> Blueprint:
    """Make `/health`, `/health/live`, `/health/ready` and `/metrics`.

    Args:
        node: Returns the running node.
        settings: Returns the settings in force.
        registry: Returns this process's metrics for `/metrics`.
    """
    observe = Blueprint("observe", __name__)

    @observe.get("/health")
    async def health() -> ResponseReturnValue:
        if node().draining:
            return {"status": "draining"}, 503
        return {"status": "ok"}, 200

    @observe.get("/health/live")
    async def live() -> ResponseReturnValue:
        return Response(LIVE.body, LIVE.status, content_type=LIVE.content_type)

    @observe.get("/health/ready")
    async def ready() -> ResponseReturnValue:
        if node().draining:
            return {"status": "draining"}, 503
        if outage := node().broker.outage():
            return {"status": "broker down", "reason": outage}, 503
        # Publishing by the API goes on, so this node is ready.
        outgoing = node().outgoing
        if outgoing is not None and (warnings := outgoing().warnings):
            return {"status": "ok", "warnings": warnings}, 200
        return {"status": "ok"}, 200

    @observe.get("/metrics")
    async def metrics() -> Response:
        if not _may_read_metrics(settings):
            address = request_of_scope(request.scope).address
            node().refusals.note(_why_not(settings()), "metrics", status=401, address=address)
            return Response(b"", 401, {"WWW-Authenticate": "Bearer"})
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        try:
            seen = await scrape(node(), registry())
        except BrokerError as error:
            return Response(f"{error}\n", 503, content_type="text/plain; charset=utf-8")
        return Response(encode(seen), 200, content_type=content_type)

    return observe


def _why_not(settings: Settings) -> Why:
    """Why the request may not read the metrics; says nothing of a key."""
    if settings.metrics_token is None and not settings.api_keys:
        return _CLOSED
    headers, query = request.headers, request.query_string or b""
    given = "Authorization" in headers or "X-API-Key" in headers or b"api_key=" in query
    return _OTHER_KEY if given else _NO_KEY


def _may_read_metrics(settings: CurrentSettings) -> bool:
    """Whether the request has the metrics' token or the API key, or the metrics are open."""
    if settings().dev or settings().metrics_open or admits(settings.api_key):
        return True
    token = settings().metrics_token
    # The bytes that came: a header is read as Latin-1, and the token may be any text.
    scheme, _, given = request.headers.get("Authorization", "").encode("latin-1").partition(b" ")
    if token is None or scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(given.strip(), token.get_secret_value().encode())
