"""The questions to a back end and its answers, as JSON (protocol, section 19). Sans I/O.

An answer holds a result, an error or a disconnect. An answer without any of them permits nothing.
An answer with a wrong type in any field permits nothing either.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from repeater.access.grant_json import (
    OverrideClaims,
    SubscriptionOptions,
    bytes_of,
    channels_of,
    data_of,
    info_of,
    overrides_of,
)
from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.causes import Cause, Why
from repeater.errors import ApplicationError, Disconnect, DisconnectError
from repeater.json_text import JSONText, embedded
from repeater.protocol import json_reader
from repeater.protocol.json_faults import fault_of

R = TypeVar("R")
G = TypeVar("G")

_DISCONNECTS_FROM: Final = 3_000
_AROUND: Final = 4  # levels around a part that passes through: `{"result":{"subs":{"c":{"info":`
_EXACT: Final = 2**53  # A number of seconds past it is not a date.

Date = Annotated[int, msgspec.Meta(ge=-_EXACT, le=_EXACT)]
ApplicationCode = Annotated[int, msgspec.Meta(ge=100, le=1_999)]
DisconnectCode = Annotated[int, msgspec.Meta(ge=3_000, le=4_999)]


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of every kind of question. The address tells the kind."""

    client: str
    transport: str
    user: str
    protocol: str
    encoding: str
    channel: str = ""
    method: str = ""
    token: str = ""
    name: str = ""
    version: str = ""
    data: msgspec.Raw | None = None
    b64data: str = ""
    meta: msgspec.Raw | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """An answer that refuses one command."""

    code: ApplicationCode
    message: str = ""
    temporary: bool = False


class DisconnectAnswer(msgspec.Struct, frozen=True):
    """An answer that ends the connection."""

    code: DisconnectCode
    reason: str = ""


class ConnectAnswer(msgspec.Struct, frozen=True):
    """The user of a connection, and its server-side subscriptions."""

    user: str = ""
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    channels: list[str] | None = None
    subs: dict[str, SubscriptionOptions | None] | None = None
    meta: msgspec.Raw = msgspec.Raw()
    expire_at: Date | None = None

    def grant(self) -> ConnectionGrant:
        """The same as a grant."""
        return ConnectionGrant(
            user=self.user,
            info=info_of(self.info, self.b64info),
            data=data_of(self.data, self.b64data),
            meta=info_of(self.meta),
            expire_at=_until(self.expire_at),
            channels=channels_of(self.subs, self.channels),
        )


class SubscribeAnswer(msgspec.Struct, frozen=True):
    """The permission to hear a channel."""

    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: OverrideClaims | None = None
    expire_at: Date | None = None

    def grant(self) -> SubscriptionGrant:
        """The same as a grant."""
        return SubscriptionGrant(
            info=info_of(self.info, self.b64info),
            data=data_of(self.data, self.b64data),
            expire_at=_until(self.expire_at),
            overrides=overrides_of(self.override),
        )


class PublishAnswer(msgspec.Struct, frozen=True):
    """The permission to publish. `data` replaces the client's data, if given."""

    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    skip_history: bool = False
    tags: dict[str, str] | None = None

    def grant(self) -> PublicationGrant:
        """The same as a grant."""
        data = bytes_of(self.data, self.b64data)
        return PublicationGrant(data or None, self.tags, self.skip_history)


class RefreshAnswer(msgspec.Struct, frozen=True):
    """A connection or subscription goes on until another expiry, or ends."""

    expired: bool = False
    expire_at: Date | None = None
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    meta: msgspec.Raw = msgspec.Raw()

    def grant(self) -> Renewal:
        """The same as a `Renewal`."""
        return Renewal(
            expired=self.expired,
            expire_at=_until(self.expire_at),
            info=info_of(self.info, self.b64info) or None,
            meta=info_of(self.meta) or None,
        )


class RPCAnswer(msgspec.Struct, frozen=True):
    """The result of a call."""

    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None

    def grant(self) -> bytes:
        """The data, or empty without data: JSON text, or the bytes of `b64data`."""
        return bytes_of(self.data, self.b64data)


class Verdict(msgspec.Struct, Generic[R], frozen=True):
    """A whole answer. If it holds several, disconnect wins over error, and error over result."""

    result: R | None = None
    error: ErrorAnswer | None = None
    disconnect: DisconnectAnswer | None = None


def encode_question(
    caller: Caller,
    *,
    channel: str = "",
    method: str = "",
    token: str = "",
    name: str = "",
    version: str = "",
    data: bytes = b"",
) -> bytes:
    """Encode a question about a caller as JSON text.

    A `JSONText` becomes the question's `data`. Other bytes become `b64data`, and `encoding` says
    so; empty ones neither.
    """
    encoded = "" if isinstance(data, JSONText) else b64encode(data).decode()
    question = Question(
        caller.client,
        caller.transport,
        caller.user,
        caller.protocol,
        "binary" if encoded else "json",
        channel=channel,
        method=method,
        token=token,
        name=name,
        version=version,
        data=None if encoded else embedded(data),
        b64data=encoded,
        meta=embedded(caller.meta),
    )
    return msgspec.json.encode(question)


Refusal = ApplicationError | DisconnectError
"""An answer that is not a result. This module returns it, and callers raise it."""


def reader(kind: type[R], grant: Callable[[R], G]) -> Callable[[bytes], G | Refusal]:
    """Make a function that reads answers of one kind.

    The function raises ValueError for other texts; the error says what is wrong with the answer.
    """
    decode = json_reader.reader(Verdict[kind], around=_AROUND)  # type: ignore[valid-type]

    def read(body: bytes) -> G | Refusal:
        try:
            verdict: Verdict[R] = decode(body)
        except msgspec.DecodeError as error:
            fault = fault_of(error)
            place = f"the answer's field {fault.place}" if fault.place else "the answer"
            raise ValueError(f"{place} {fault.text}") from None
        if verdict.disconnect is not None:
            return disconnection(verdict.disconnect.code, verdict.disconnect.reason)
        if verdict.error is not None:
            one = verdict.error
            return refusal(one.code, one.message, temporary=one.temporary)
        if verdict.result is None:
            raise ValueError("the answer has no result, error or disconnect")
        return grant(verdict.result)

    return read


read_connect: Final = reader(ConnectAnswer, ConnectAnswer.grant)
read_refresh: Final = reader(RefreshAnswer, RefreshAnswer.grant)
read_subscribe: Final = reader(SubscribeAnswer, SubscribeAnswer.grant)
read_publish: Final = reader(PublishAnswer, PublishAnswer.grant)
read_rpc: Final = reader(RPCAnswer, RPCAnswer.grant)


def meaning(code: int) -> Refusal:
    """The answer that a status's code means. Codes from 3000 on are disconnects."""
    return disconnection(code) if code >= _DISCONNECTS_FROM else refusal(code)


def refusal(code: int, message: str = "", *, temporary: bool = False) -> ApplicationError:
    """An error that always has a text, because an SDK breaks without one."""
    return ApplicationError(code, message or "refused", temporary=temporary)


def disconnection(code: int, reason: str = "") -> DisconnectError:
    """A disconnect that always has a reason, because an SDK ignores a code without one."""
    end = Disconnect(code, reason or "disconnected by the application")
    text = f"the back end answered with disconnect {code}: {end.reason}"
    return DisconnectError(end, Why(Cause.APPLICATION, text))


def _until(expire_at: int | None) -> int:
    return max(0, expire_at or 0)
