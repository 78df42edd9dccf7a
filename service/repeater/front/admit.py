"""Decides who may subscribe: the one list of checks, for every transport and both servers.

In this order: host, origin, method, shutdown, token, denial, limits of a user, channels, limits in
all.
Rule: only a token's verifier and a request's body are waited for, and both come first. Nothing
after them waits, so a decision still holds when the client arrives, and the place that was checked
is the place that is held. Where workers share limits, a place of the server is waited for, too:
then all checks are made before it, and once more after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

import msgspec

from repeater.access.channel_rules import OF_ANOTHER_USER
from repeater.access.grants import (
    NO_KEY,
    NOTHING_GRANTED,
    ConnectionGrant,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
    why_no_keys,
)
from repeater.access.origins import Page
from repeater.backend.headers import NONE, forwarded
from repeater.causes import Cause, Why
from repeater.clients.binary import BINARY_CHANNEL, fits, warn_of_binary
from repeater.clients.client import ANONYMOUS
from repeater.clients.denials import why_denied
from repeater.clients.limits import LimitError, Place, limit_reached, too_many_channels
from repeater.clients.opening import Opening
from repeater.clients.plain import Wanted
from repeater.clients.since import SINCE_FORMS, SinceError, parse_since, positions_of
from repeater.errors import (
    FORCE_DISCONNECT,
    BrokerError,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.fanout.rewind import Rewind
from repeater.front import protobuf
from repeater.front.reasons import (
    BODY_TOO_LARGE,
    explained,
    foreign_page,
    other_host,
    unheard_cookie,
    wrong_method,
)
from repeater.front.request import OCTETS
from repeater.front.responses import (
    PROTOBUF_FAREWELL,
    answer_method,
    answer_refusal,
    cors_headers,
)
from repeater.front.routes import ROUTES, Route
from repeater.protocol.centrifugo.commands import parse_connect
from repeater.protocol.http.answer import Answer, Headers
from repeater.protocol.sse.event_id import room_of_event_id

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.front.request import ReadBody, Request
    from repeater.node import Node
    from repeater.protocol.centrifugo.codecs import Codec

_TOO_MANY: Final = {
    "connections": HTTPStatus.SERVICE_UNAVAILABLE,
    "connection_rate": HTTPStatus.SERVICE_UNAVAILABLE,
    "connections_per_address": HTTPStatus.TOO_MANY_REQUESTS,
    "connections_per_user": HTTPStatus.TOO_MANY_REQUESTS,
}
_DRAINING: Final = Why(Cause.SHUTDOWN, "the server shuts down")
_NO_SUPERVISOR: Final = Why(Cause.ENGINE, "the supervisor does not answer")
_NO_ROOM: Final = Why(
    Cause.REQUEST, "The head of the request has no room for an event id: name fewer channels."
)
_NO_CHANNEL: Final = Why(Cause.REQUEST, "No channel: add ?channel=NAME to the address.")
_BINARY: Final = Why(
    Cause.NOT_OFFERED, BINARY_CHANNEL, "use envelope=1, /ws, or an SDK in Protobuf"
)
_EXPIRED: Final = Why(Cause.TOKEN_EXPIRED, "the token has expired", "fetch a new one")
_NO_CREDENTIALS: Final = Why(
    Cause.CREDENTIALS,
    "no token, and anonymous clients may not subscribe",
    "send a token (?token=, Authorization: Bearer, cookie), or set allow_anonymous = true",
)
_NO_USER: Final = Why(
    Cause.CREDENTIALS,
    "the token names no user, and anonymous clients may not subscribe",
    "name the user in sub, or set allow_guest_tokens = true",
)
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
_ENVELOPE: Final = Why(
    Cause.REQUEST, "envelope must be 0 or 1; on a WebSocket, since needs envelope=1"
)
_SINCE: Final = Why(Cause.REQUEST, SINCE_FORMS)


class Refusal(msgspec.Struct, frozen=True):
    """The answer to a request that is not opened: a refusal, or the answer to a preflight."""

    answer: Answer
    counted: bool = False
    """Whether a limit or a denial has counted the request, which must not be counted twice."""
    why: Why | None = None
    """The reason, for `note_refusal`; None where nothing was refused."""
    user: str = ""
    channel: str = ""


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.answer.status)
        self.refusal = refusal


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
        except _RefusedError as error:
            self.leave()
            return error.refusal


class _Decision(msgspec.Struct, eq=False):
    """Everything that is looked at until a request is decided. Lives inside `Admission.decide`."""

    _node: Node
    _settings: Settings
    _request: Request
    _read_body: ReadBody | None
    _route: Route
    _place: Place
    _codec: Codec
    """Of the client that asks, or another one that carries the same data."""
    _cors: Headers = ()
    _user: str = ""
    """The user of a token that is proven."""

    async def make(self) -> Opening:
        """Ask all the questions, in their order.

        Raises:
            _RefusedError: one of them refuses.
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
        envelope = self._asks_envelope()
        if envelope:
            assert self._route.enveloping is not None, "a plain route has envelopes"
            self._codec = self._route.enveloping[0]
        channels = self._channels(grant)
        if not (envelope or self._route.media_type):
            return Wanted(grant=grant, channels=channels)
        if self._route.media_type:
            self._ask_formats(channels)
        self._ask_room_for_id(len(channels))
        return self._begin(Wanted(grant=grant, channels=channels, envelope=envelope))

    def _asks_envelope(self) -> bool:
        """Whether events come in envelopes; on a WebSocket, `since` asks for these as well.

        Without them nothing could be told there: neither what is missing nor where the client is.
        """
        query = self._request.query
        asked = query.get("envelope")
        since = not self._route.media_type and "since" in query
        if asked is None:
            return since
        if asked[0] not in ("0", "1") or (since and asked[0] == "0"):
            raise self._refused(HTTPStatus.BAD_REQUEST, _ENVELOPE, text=_ENVELOPE.text)
        return asked[0] == "1"

    def _begin(self, wanted: Wanted) -> Wanted:
        """Add where the client begins: after its last event, else where `since` says."""
        request, replace, names = self._request, msgspec.structs.replace, list(wanted.channels)
        last = request.last_event_id
        if last:
            return replace(wanted, since=positions_of(last, names))
        since = request.parameter("since")
        if not since:
            return wanted
        try:
            begin = parse_since(since, names, self._node.unix_time())
        except SinceError:
            raise self._refused(HTTPStatus.BAD_REQUEST, _SINCE, text=_SINCE.text) from None
        if isinstance(begin, Rewind):
            return replace(wanted, rewind=begin)
        return replace(wanted, since=begin)

    def _ask_formats(self, channels: Iterable[str]) -> None:
        """Refuse binary channels to an event stream, which is text (400)."""
        if not all(map(self._fits, channels)):
            raise self._refused(HTTPStatus.BAD_REQUEST, _BINARY, text=BINARY_CHANNEL)

    def _fits(self, channel: str) -> bool:
        try:
            return fits(self._codec, self._node.channels.options(channel))
        except ReplyError:
            return True  # A public channel without a namespace; opening it refuses it.

    def _ask_room_for_id(self, channels: int) -> None:
        """Refuse a stream that could not come back: its head has no room for an event id (431)."""
        request, room = self._request, room_of_event_id(channels)
        most = self._settings.head_limit - room
        # The first number is at hand, and most heads are far below the limit.
        if request.size <= most:
            return
        size = request.size_without_id(since=bool(self._route.media_type))
        if size > most - len(self._settings.path_prefix):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise self._refused(status, _NO_ROOM, text=_NO_ROOM.text)

    def _ask_method(self) -> None:
        """Answer a preflight, and refuse other methods than the route's (405)."""
        answer = answer_method(self._request, self._route.methods)
        if answer is None:
            self._cors = cors_headers(self._request)
            return
        if self._request.method == "OPTIONS":
            raise _RefusedError(Refusal(answer))
        why = wrong_method(self._request)
        raise _RefusedError(Refusal(explained(self._node.refusals, answer, why), why=why))

    def _ask_draining(self) -> None:
        """Refuse with 503 while the node shuts down."""
        if self._node.draining:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise self._refused(status, _DRAINING, text=_DRAINING.text)

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

    def _channels(self, grant: ConnectionGrant) -> dict[str, SubscriptionGrant]:
        """Return the channels of the request, each once; else the token's, else the default.

        Refuses with 401 an anonymous user, unless those are allowed; with 403 a user without the
        permission to subscribe; with 400 a request for no channel, for an invalid name, or for
        more channels than a connection may have.
        """
        node = self._node
        options, rules = node.options, node.channels
        names = list(dict.fromkeys(self._request.query.get("channel", ())))
        if not names:
            default = [options.default_channel] if options.default_channel else []
            names = self._granted(grant) or default
            if not names:
                raise self._refused(HTTPStatus.BAD_REQUEST, _NO_CHANNEL, text=_NO_CHANNEL.text)
        for name in names:
            if rules.is_of_another(name, grant.user):
                raise self._refused(HTTPStatus.FORBIDDEN, OF_ANOTHER_USER, channel=name)
        if options.public_channels.issuperset(names):
            return dict.fromkeys(names, NOTHING_GRANTED)
        guest = grant.by_token and options.allow_guest_tokens
        if not (grant.user or guest or options.insecure or options.allow_anonymous):
            raise self._refused(HTTPStatus.UNAUTHORIZED, self._no_user(grant))
        if len(names) > options.channel_limit:
            raise self._refused(HTTPStatus.BAD_REQUEST, too_many_channels(options.channel_limit))
        try:
            for name in names:
                if name in grant.channels:
                    rules.options(name)
                else:
                    rules.check_subscribe(name, grant.user)
        except ReplyError as error:
            denied = error.code is ErrorCode.PERMISSION_DENIED
            status = HTTPStatus.FORBIDDEN if denied else HTTPStatus.BAD_REQUEST
            raise self._refused(status, error.why, channel=name) from None
        channels = dict.fromkeys(names, NOTHING_GRANTED)
        if grant.channels:
            channels |= {name: grant.channels[name] for name in names if name in grant.channels}
        return channels

    def _no_user(self, grant: ConnectionGrant) -> Why:
        """Why somebody without a user may not subscribe."""
        if grant.by_token:
            return _NO_USER
        if self._request.from_anybody and b"cookie" in self._request.headers:
            return unheard_cookie(self._request)
        return _NO_CREDENTIALS

    def _granted(self, grant: ConnectionGrant) -> list[str]:
        """The token's channels; the server chose them, so one that cannot be refuses nobody."""
        rules = self._node.channels
        names: list[str] = []
        for name in grant.channels:
            if not rules.grantable(name, grant.user):
                continue
            if self._fits(name):
                names.append(name)
            else:
                whose = {"user": grant.user, "transport": self._route.name}
                warn_of_binary(self._node, None, name, address=self._request.address, **whose)
        return names

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
                raise _RefusedError(Refusal(answer, why=_JSON_ONLY))
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

    def _too_many(self, error: LimitError) -> _RefusedError:
        why = limit_reached(error.limit, getattr(self._node.options.limits, error.limit))
        return self._refused(_TOO_MANY[error.limit], why, counted=True, text=why.text)

    def _refused(
        self,
        status: HTTPStatus,
        why: Why,
        *,
        counted: bool = False,
        text: str = "",
        channel: str = "",
    ) -> _RefusedError:
        refusals = self._node.refusals
        text = refusals.told(text, why)
        answer = answer_refusal(self._request, self._route, status, self._cors, text)
        answer = explained(refusals, answer, why)
        return _RefusedError(Refusal(answer, counted, why, self._user, channel))


def note_refusal(node: Node, request: Request, refusal: Refusal) -> None:
    """Log and count a refusal; called by who sends its answer."""
    if refusal.why is not None:
        node.refusals.note(
            refusal.why,
            ROUTES[request.path].name,
            status=refusal.answer.status,
            channel=refusal.channel,
            user=refusal.user,
            address=request.address,
        )


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
        node, settings, request, read_body, route, admission, route.codec
    )
    return admission


def _text_or_bytes(body: bytes) -> str | bytes:
    """A body as a message: text, unless it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body
