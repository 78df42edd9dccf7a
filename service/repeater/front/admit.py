"""Decides who may subscribe: the one list of checks, for every transport and both servers.

In this order: host, origin, method, shutdown, token, denial, limits of a user, channels, limits in
all.
Rule: only a token's verifier and a request's body are waited for, and both come first. Nothing
after them waits, so a decision still holds when the client arrives, and the place that was checked
is the place that is held. Where workers share limits, a place of the server is waited for, too:
then all checks are made before it, and once more after it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

import msgspec

from repeater.access.grants import (
    NO_KEY,
    ConnectionGrant,
    TokenExpiredError,
    TokenInvalidError,
    why_no_keys,
)
from repeater.access.origins import Page
from repeater.backend.headers import NONE, forwarded
from repeater.causes import SHUTTING_DOWN, Cause, Why
from repeater.clients.client import ANONYMOUS
from repeater.clients.denials import why_denied
from repeater.clients.limits import LimitError, Place, limit_reached
from repeater.clients.opening import Opening
from repeater.clients.plain import Wanted
from repeater.errors import (
    FORCE_DISCONNECT,
    BrokerError,
    DisconnectError,
)
from repeater.front import protobuf
from repeater.front.plain_questions import PlainQuestions
from repeater.front.reasons import (
    BODY_TOO_LARGE,
    explained,
    foreign_page,
    other_host,
    wrong_method,
)
from repeater.front.refusal import Refusal, RefusedError
from repeater.front.request import OCTETS
from repeater.front.responses import (
    PROTOBUF_FAREWELL,
    answer_method,
    cors_headers,
)
from repeater.front.routes import ROUTES
from repeater.protocol.centrifugo.commands import parse_connect
from repeater.protocol.http.answer import Answer

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.front.request import ReadBody, Request
    from repeater.node import Node

_TOO_MANY: Final = {
    "connections": HTTPStatus.SERVICE_UNAVAILABLE,
    "connection_rate": HTTPStatus.SERVICE_UNAVAILABLE,
    "connections_per_address": HTTPStatus.TOO_MANY_REQUESTS,
    "connections_per_user": HTTPStatus.TOO_MANY_REQUESTS,
}
_NO_SUPERVISOR: Final = Why(Cause.ENGINE, "the supervisor does not answer")
_EXPIRED: Final = Why(Cause.TOKEN_EXPIRED, "the token has expired", "fetch a new one")
_JSON_ONLY: Final = Why(
    Cause.NOT_OFFERED,
    "this way in speaks JSON, and the request is Protobuf",
    "use /connection/websocket or /connection/http_stream, or an SDK in JSON",
)
_NO_MESSAGE: Final = Why(
    Cause.REQUEST, "the stream's first message is missing", "send it as the body, or as cf_connect"
)
_NO_CONNECT: Final = Why(
    Cause.REQUEST, "the body is not a connect request", "send a JSON object, or nothing"
)


class Admission(Place, eq=False):
    """The place of one request, a context manager: it is held until the block ends.

    The block lasts as long as its connection, so no part of the request is kept here.
    """

    _decision: _Decision | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def decide(self) -> Opening | Refusal:
        """Return the `Opening` to serve inside the block, or the `Refusal` to answer; call it once.

        Waits for the verifier of a plain subscriber's token, with the verifier's own deadline, and
        for the request's body, with its reader's deadline. If cancelled, no place is held.
        """
        decision, self._decision = self._decision, None
        assert decision is not None, "an admission is decided once"
        try:
            return await decision.make()
        except RefusedError as error:
            self.leave()
            return error.refusal


class _Decision(PlainQuestions, eq=False, kw_only=True):
    """The questions to one request, in their order. Lives inside `Admission.decide`."""

    _place: Place
    _read_body: ReadBody | None

    async def make(self) -> Opening:
        """Ask all the questions, in their order.

        Raises:
            RefusedError: one of them refuses.
        """
        request, route, settings = self._request, self._route, self._settings
        if not request.host_allowed(settings.hosts):
            why = other_host(request, settings.hosts)
            raise self._refused(HTTPStatus.MISDIRECTED_REQUEST, why)
        if request.judge_page(settings.origins) is Page.FOREIGN:
            raise self._refused(HTTPStatus.FORBIDDEN, foreign_page(request, settings.origins))
        if route.media_type:
            self._ask_method()
        self._ask_draining()
        if route.kind == "plain":
            token = request.parameter("token") or request.credentials()
            grant = await self._prove(token) if token else ANONYMOUS
            if self._node.places.reserved:
                self._check_plain(grant)
                await self._reserve(grant.user)
            return self._admit_plain(grant)
        first: str | bytes = ""
        asks = route.asks_protobuf
        speaks_protobuf = asks is not None and asks(request)
        if speaks_protobuf:
            await protobuf.load()
        if route.media_type:
            first = await self._first_of_stream(binary=speaks_protobuf)
        elif route.kind == "unidirectional":
            first = request.parameter("cf_connect")
        if self._node.places.reserved:
            self._ask_draining()
            await self._reserve("")
        return self._admit_centrifuge(first, speaks_protobuf=speaks_protobuf)

    def _admit_centrifuge(self, first: str | bytes, *, speaks_protobuf: bool) -> Opening:
        """Decide on a client whose user is not known yet; sync, see the module's rule."""
        request, kind = self._request, self._route.kind
        allowed = self._node.forward_headers
        self._ask_draining()
        self._take_place()
        return Opening(
            name=self._route.name,
            kind=kind,
            place=self._place,
            first=first,
            credentials=request.credentials() if kind == "emulated" else "",
            headers=forwarded(request.header_lines(), allowed) if allowed else NONE,
            protobuf=speaks_protobuf,
        )

    def _admit_plain(self, grant: ConnectionGrant) -> Opening:
        """Decide on a plain subscriber whose token is proven; sync, see the module's rule."""
        wanted = self._check_plain(grant)
        self._take_place()
        self._place.identify()
        return Opening(name=self._route.name, kind="plain", place=self._place, wanted=wanted)

    def _check_plain(self, grant: ConnectionGrant) -> Wanted:
        """Check all but the limits in all; return the channels, and where to begin in them."""
        self._user = grant.user
        if 0 < grant.expire_at <= self._node.unix_time():
            raise self._refused(HTTPStatus.UNAUTHORIZED, _EXPIRED)
        self._ask_denials(grant)
        if grant.user:
            self._take_user(grant.user)
        self._ask_draining()
        return self._wanted(grant)

    def _ask_method(self) -> None:
        """Answer a preflight, and refuse other methods than the route's (405)."""
        answer = answer_method(self._request, self._route.methods)
        if answer is None:
            self._cors = cors_headers(self._request)
            return
        if self._request.method == "OPTIONS":
            raise RefusedError(Refusal(answer))
        why = wrong_method(self._request)
        raise RefusedError(Refusal(explained(self._node.refusals, answer, why), why=why))

    def _ask_draining(self) -> None:
        """Refuse with 503 while the node shuts down."""
        if self._node.draining:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise self._refused(status, SHUTTING_DOWN, text=SHUTTING_DOWN.text)

    async def _prove(self, token: str) -> ConnectionGrant:
        """Return the grant in a plain subscriber's token.

        In development mode an invalid or expired token counts as a missing one; the log says why.
        """
        verifier, insecure = self._node.verifier, self._node.options.insecure
        try:
            if verifier is None:
                raise TokenInvalidError(*NO_KEY)
            grant = await verifier.verify_connection(token)
        except (TokenExpiredError, TokenInvalidError) as error:
            if insecure:
                name, address = self._route.name, self._request.address
                self._node.refusals.note(error.why, name, address=address)
                return ANONYMOUS
            raise self._refused(HTTPStatus.UNAUTHORIZED, error.why) from None
        except BrokerError as error:
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, "the keys of tokens are not available"
            raise self._refused(status, why_no_keys(error), text=text) from None
        return msgspec.structs.replace(grant, by_token=True)

    def _ask_denials(self, grant: ConnectionGrant) -> None:
        """Refuse blocked users and revoked tokens, with 403."""
        refusal = self._node.denials.refusal(grant)
        if refusal is not None:
            self._node.limited["blocked" if refusal is FORCE_DISCONNECT else "revoked"] += 1
            raise self._refused(HTTPStatus.FORBIDDEN, why_denied(refusal), counted=True)

    async def _first_of_stream(self, *, binary: bool) -> str | bytes:
        """Return the message that comes with a stream's request: a parameter or a POST's body.

        The body is bytes if it is `binary`; else text, where it is UTF-8.

        An emulated stream is refused with 400 if the message is missing; a unidirectional one if
        it is malformed, since its client gets no replies that could name the error.
        """
        route, request = self._route, self._request
        if request.length > self._node.options.message_limit:
            raise self._refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, BODY_TOO_LARGE)
        if request.method == "POST":
            if request.has_octets() and not binary:
                answer = Answer(HTTPStatus.OK, PROTOBUF_FAREWELL, OCTETS, tuple(self._cors))
                raise RefusedError(Refusal(answer, why=_JSON_ONLY))
            assert self._read_body is not None, "a POST has a body to read"
            body = await self._read_body()
            first = body if binary else _text_or_bytes(body)
        else:
            first = request.parameter("cf_connect")
        if route.kind == "emulated":
            if not first:
                raise self._refused(HTTPStatus.BAD_REQUEST, _NO_MESSAGE)
            return first
        try:
            if isinstance(first, bytes):
                raise self._refused(HTTPStatus.BAD_REQUEST, _NO_CONNECT)
            parse_connect(first or "{}")
        except DisconnectError:
            raise self._refused(HTTPStatus.BAD_REQUEST, _NO_CONNECT) from None
        return first or "{}"

    def _take_user(self, user: str) -> None:
        try:
            self._place.take_user(self._node.options.limits, user)
        except LimitError as error:
            raise self._too_many(error) from None

    async def _reserve(self, user: str) -> None:
        """Reserve the place where workers or nodes share limits; see `Place.reserve`."""
        limits = self._node.options.limits
        address = self._request.address if limits.connections_per_address else ""
        carrier = self._request.connection
        try:
            await self._place.reserve(
                limits, address=address, user=user, counted=True, carrier=carrier
            )
        except LimitError as error:
            raise self._too_many(error) from None
        except BrokerError:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise self._refused(status, _NO_SUPERVISOR, text=_NO_SUPERVISOR.text) from None

    def _take_place(self) -> None:
        """Take the place. The last check, since it counts the connection."""
        limits = self._node.options.limits
        try:
            # Asking a socket for its peer is a system call: made only if addresses are limited.
            address = self._request.address if limits.connections_per_address else ""
            self._place.take(limits, address, self._request.connection)
        except LimitError as error:
            raise self._too_many(error) from None

    def _too_many(self, error: LimitError) -> RefusedError:
        why = limit_reached(error.limit, getattr(self._node.options.limits, error.limit))
        return self._refused(_TOO_MANY[error.limit], why, counted=True, text=why.text)


def admit(
    node: Node, settings: Settings, request: Request, read_body: ReadBody | None = None
) -> Admission:
    """Ask whether a request to one of `ROUTES` may be opened, and hold its place.

    Enter the admission, then await its `decide`, and serve inside the block.

    Args:
        node: The node that the client wants to subscribe to.
        settings: The settings in force: which hosts are ours, and which pages may connect.
        request: The request, without its body.
        read_body: Reads the body of a POST; called at most once, and only if it is needed.
    """
    admission, route = Admission(node.places), ROUTES[request.path]
    admission._decision = _Decision(
        _node=node,
        _settings=settings,
        _request=request,
        _route=route,
        _codec=route.codec,
        _place=admission,
        _read_body=read_body,
    )
    return admission


def _text_or_bytes(body: bytes) -> str | bytes:
    """A body as a message: text, unless it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body
