"""The REST API that back ends publish by (protocol, section 18).

A body is parsed once; `data` stays the text that it arrived as. API errors are answered 200 with
`error`, as Centrifugo's libraries expect; what is no API call at all gets an HTTP status.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from quart import Blueprint, Response, request
from quart.typing import ResponseReturnValue

from service.config import Settings
from service.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from service.node import Node
from service.publication import Publication, StreamPosition


class PublishBody(msgspec.Struct, frozen=True):
    """`POST /api/publish`. Unknown fields are ignored."""

    channel: str = ""
    data: msgspec.Raw = msgspec.Raw()
    skip_history: bool = False
    tags: dict[str, str] | None = None
    idempotency_key: str = ""


class BroadcastBody(PublishBody, frozen=True):
    """`POST /api/broadcast`: the same event into several channels."""

    channels: list[str] = []


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call's result or error."""

    result: StreamPosition | dict[str, object] | None = None
    error: dict[str, object] | None = None


Body = TypeVar("Body")

_decode_publish = msgspec.json.Decoder(PublishBody).decode
_decode_broadcast = msgspec.json.Decoder(BroadcastBody).decode
_encode = msgspec.json.Encoder().encode


def create_api(node: Callable[[], Node], settings: Callable[[], Settings]) -> Blueprint:
    """`/api/publish` and `/api/broadcast`, behind the API key."""
    api = Blueprint("api", __name__, url_prefix="/api")

    @api.before_request
    async def check_key() -> ResponseReturnValue | None:
        return None if _authorized(settings()) else Response(b"", 401)

    @api.post("/publish")
    async def publish() -> Response:
        return await _answer(_decode_publish, lambda body: _publish(node(), body, body.channel))

    @api.post("/broadcast")
    async def broadcast() -> Response:
        return await _answer(_decode_broadcast, lambda body: _broadcast(node(), body))

    return api


def _authorized(settings: Settings) -> bool:
    """Whether the running request may call: with a key, or without one in development mode."""
    return has_api_key(settings) if settings.api_keys else settings.dev


def has_api_key(settings: Settings) -> bool:
    """Whether the running request has a right key, compared in constant time.

    In a header, as `Authorization: apikey`, or in the query, in this order.
    """
    given = request.headers.get("X-API-Key")
    if given is None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = key if scheme.lower() == "apikey" else request.args.get("api_key", "")
    # Every key is compared, so that the time tells nothing of which one it was.
    matches = [hmac.compare_digest(given.encode(), expected) for expected in settings.api_keys]
    return any(matches)


async def _answer(
    decode: Callable[[bytes], Body], call: Callable[[Body], Awaitable[Outcome]]
) -> Response:
    """Read and parse the body, make the call, and put what came of it into HTTP."""
    text: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]
    try:
        text.decode()
        body = decode(text)
    except msgspec.ValidationError:
        return _json(_failed(ErrorCode.BAD_REQUEST))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Response(b"Bad Request\n", 400, content_type="text/plain")
    try:
        return _json(await call(body))
    except IntakeFullError:
        return Response(b"Try later\n", 503, {"Retry-After": "1"}, content_type="text/plain")


def _json(outcome: Outcome) -> Response:
    return Response(_encode(outcome), 200, content_type="application/json")


async def _publish(node: Node, body: PublishBody, channel: str) -> Outcome:
    """One publication; its position, or `{}` where the channel keeps no history."""
    publication = Publication(channel, bytes(body.data), tags=body.tags)
    try:
        position = await node.publish(
            publication, idempotency_key=body.idempotency_key, skip_history=body.skip_history
        )
    except ReplyError as error:
        return _failed(error.code)
    except BrokerError:
        return _failed(ErrorCode.INTERNAL)
    return Outcome(result={} if position is None else position)


async def _broadcast(node: Node, body: BroadcastBody) -> Outcome:
    """The same event into each channel, in their order; each has its own outcome."""
    if not body.channels:
        return _failed(ErrorCode.BAD_REQUEST)
    responses = [await _publish(node, body, channel) for channel in body.channels]
    return Outcome(result={"responses": responses})


def _failed(code: ErrorCode) -> Outcome:
    return Outcome(error={"code": int(code), "message": code.message})
