"""What a plain subscriber asks for: its channels, their envelope, and where it begins in them.

Rule: nothing here waits; see `admit`, which asks these questions when the token is proven.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.access.channel_rules import OF_ANOTHER_USER
from repeater.access.grants import NOTHING_GRANTED, ConnectionGrant, SubscriptionGrant
from repeater.causes import Cause, Why
from repeater.clients.binary import BINARY_CHANNEL, fits, warn_of_binary
from repeater.clients.limits import too_many_channels
from repeater.clients.plain import Wanted
from repeater.clients.since import SINCE_FORMS, SinceError, parse_since, positions_of
from repeater.errors import ErrorCode, ReplyError
from repeater.fanout.rewind import Rewind
from repeater.front.reasons import unheard_cookie
from repeater.front.refusal import Questions
from repeater.protocol.sse.event_id import room_of_event_id

if TYPE_CHECKING:
    from repeater.protocol.centrifugo.codecs import Codec

_NO_ROOM: Final = Why(
    Cause.REQUEST, "The head of the request has no room for an event id: name fewer channels."
)
_NO_CHANNEL: Final = Why(Cause.REQUEST, "No channel: add ?channel=NAME to the address.")
_BINARY: Final = Why(
    Cause.NOT_OFFERED, BINARY_CHANNEL, "use envelope=1, /ws, or an SDK in Protobuf"
)
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
_ENVELOPE: Final = Why(
    Cause.REQUEST, "envelope must be 0 or 1; on a WebSocket, since needs envelope=1"
)
_SINCE: Final = Why(Cause.REQUEST, SINCE_FORMS)


class PlainQuestions(Questions, eq=False, kw_only=True):
    """The questions about channels. Lives as `Questions`."""

    _codec: Codec
    """Of the client that asks, or another one that carries the same data."""

    def _wanted(self, grant: ConnectionGrant) -> Wanted:
        """Return the channels, and where to begin in them.

        Raises:
            RefusedError: the client may not have them, or asks for them in a wrong way.
        """
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
        request = self._request
        last, since = request.last_event_id, request.parameter("since")
        if not (last or since):
            return wanted
        replace, names = msgspec.structs.replace, list(wanted.channels)
        if last:
            return replace(wanted, since=positions_of(last, names))
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
