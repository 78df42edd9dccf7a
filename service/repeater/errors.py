"""The errors for faults that are not our own, sorted by whose fault it is.

A client's fault is a `ReplyError` (one command failed) or a `Disconnect` (the connection ends);
a back end's is a `BrokerError`; an overload is `IntakeFullError`. Anything else is a bug of ours
and must crash loudly. Codes and texts are Centrifugo's, because Centrifugo's SDKs act on them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Final

import msgspec
import trio

from repeater.causes import Cause, Why


class RepeaterError(Exception):
    """The base of every exception that Repeater raises for others to handle."""


class ErrorCode(IntEnum):
    """Reply error codes of the Centrifugo client protocol (`errors.go`)."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    UNKNOWN_CHANNEL = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    ALREADY_SUBSCRIBED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    EXPIRED = 110
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112

    @property
    def message(self) -> str:
        """The protocol's text for this code: `internal server error`, `bad request`..."""
        if self is ErrorCode.INTERNAL:
            return "internal server error"
        return self.name.lower().replace("_", " ")

    @property
    def temporary(self) -> bool:
        """Whether an SDK may retry the command by itself."""
        return self in (ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS)


_CAUSES: Final = {
    ErrorCode.INTERNAL: Cause.ENGINE,
    ErrorCode.UNAUTHORIZED: Cause.CREDENTIALS,
    ErrorCode.UNKNOWN_CHANNEL: Cause.NAMESPACE,
    ErrorCode.PERMISSION_DENIED: Cause.PERMISSION,
    ErrorCode.METHOD_NOT_FOUND: Cause.METHOD,
    ErrorCode.LIMIT_EXCEEDED: Cause.LIMIT,
    ErrorCode.NOT_AVAILABLE: Cause.NOT_OFFERED,
    ErrorCode.TOKEN_EXPIRED: Cause.TOKEN_EXPIRED,
    ErrorCode.EXPIRED: Cause.TOKEN_EXPIRED,
    ErrorCode.TOO_MANY_REQUESTS: Cause.LIMIT,
    ErrorCode.UNRECOVERABLE_POSITION: Cause.RECOVERY,
}
"""The causes of errors that say no more than their code."""


class ReplyError(RepeaterError):
    """One command, or one REST call, cannot be carried out; the connection goes on.

    `message` says it more exactly than the code's own text, which it replaces. `temporary` is the
    code's own, unless the error says otherwise. `why` is for the log, and for the client in
    development mode only; without it, the code says why.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str = "",
        *,
        temporary: bool | None = None,
        why: Why | None = None,
    ) -> None:
        self.code = code
        self.message = message or code.message
        self.temporary = code.temporary if temporary is None else temporary
        self.why = why or Why(_CAUSES.get(code, Cause.REQUEST), self.message)
        # The text of the exception is for programs that hold a node: it says why.
        super().__init__(f"{code.value} {self.message}" + (f": {why}" if why else ""))


class ApplicationError(ReplyError):
    """The application's back end refused a command, with a code and a text of its own.

    `number` is the application's code. `code` is the same number if the protocol has such a code,
    else 100, for callers that know the protocol's codes only.
    """

    def __init__(self, number: int, message: str, *, temporary: bool) -> None:
        known = number in ErrorCode.__members__.values()
        code = ErrorCode(number) if known else ErrorCode.INTERNAL
        why = Why(Cause.APPLICATION, f"the back end answered with error {number}: {message}")
        super().__init__(code, message, temporary=temporary, why=why)
        self.args = (f"{number} {message}",)
        self.number = number


class Disconnect(msgspec.Struct, frozen=True):
    """Why a connection ends: a value. The exception that carries one is `DisconnectError`.

    The code's range tells the client whether to reconnect.

    3000-3499 and 4000-4499: reconnect; 3500-3999 and 4500-4999: do not reconnect
    (protocol, section 8.2). The reason is never empty, because the JavaScript SDK
    ignores the code of a close frame without a reason.
    """

    code: int
    reason: str


CONNECTION_CLOSED: Final = Disconnect(3000, "connection closed")
SHUTDOWN: Final = Disconnect(3001, "shutdown")
SERVER_ERROR: Final = Disconnect(3004, "internal server error")
EXPIRED: Final = Disconnect(3005, "connection expired")
SUBSCRIPTION_EXPIRED: Final = Disconnect(3006, "subscription expired")
SLOW: Final = Disconnect(3008, "slow")
WRITE_ERROR: Final = Disconnect(3009, "write error")
INSUFFICIENT_STATE: Final = Disconnect(3010, "insufficient state")
NO_PONG: Final = Disconnect(3012, "no pong")
TOO_MANY_REQUESTS: Final = Disconnect(3013, "too many requests")
INVALID_TOKEN: Final = Disconnect(3500, "invalid token")
BAD_REQUEST: Final = Disconnect(3501, "bad request")
STALE: Final = Disconnect(3502, "stale")
FORCE_DISCONNECT: Final = Disconnect(3503, "force disconnect")
CONNECTION_LIMIT: Final = Disconnect(3504, "connection limit")
CHANNEL_LIMIT: Final = Disconnect(3505, "channel limit")
PERMISSION_DENIED: Final = Disconnect(3507, "permission denied")
NOT_AVAILABLE: Final = Disconnect(3508, "not available")


_CAUSES_OF_ENDS: Final = {
    SHUTDOWN.code: Cause.SHUTDOWN,
    SERVER_ERROR.code: Cause.ENGINE,
    EXPIRED.code: Cause.TOKEN_EXPIRED,
    SUBSCRIPTION_EXPIRED.code: Cause.TOKEN_EXPIRED,
    INSUFFICIENT_STATE.code: Cause.RECOVERY,
    TOO_MANY_REQUESTS.code: Cause.LIMIT,
    INVALID_TOKEN.code: Cause.TOKEN,
    BAD_REQUEST.code: Cause.REQUEST,
    STALE.code: Cause.REQUEST,
    FORCE_DISCONNECT.code: Cause.DENIAL,
    CONNECTION_LIMIT.code: Cause.LIMIT,
    CHANNEL_LIMIT.code: Cause.LIMIT,
    PERMISSION_DENIED.code: Cause.PERMISSION,
    NOT_AVAILABLE.code: Cause.NOT_OFFERED,
}
"""The causes of disconnects that say no more than their code; an application's have codes from
4000 on."""

REASONS: Final = {one.code: one.reason for one in tuple(vars().values()) if type(one) is Disconnect}
"""The reasons of our own codes. An application's reasons can be any text, so metrics do
not count by them."""


class Unsubscribed(msgspec.Struct, frozen=True):
    """Why the server ended a subscription. From 2500 on the client subscribes again at once."""

    code: int
    reason: str


CLIENT_UNSUBSCRIBE: Final = Unsubscribed(0, "client unsubscribe")
DISCONNECTED: Final = Unsubscribed(1, "disconnect")
"""Only the application's back end is told of these two; clients are not."""
SERVER_UNSUBSCRIBE: Final = Unsubscribed(2000, "server unsubscribe")
POSITION_LOST: Final = Unsubscribed(2500, "insufficient state")
UNSUBSCRIBED_EXPIRED: Final = Unsubscribed(2501, "subscription expired")


class DisconnectError(RepeaterError):
    """A client broke the protocol; its connection must be ended with `disconnect`.

    `why` is for the log, as that of a `ReplyError`.
    """

    def __init__(self, disconnect: Disconnect, why: Why | None = None) -> None:
        super().__init__(f"{disconnect.code} {disconnect.reason}")
        self.disconnect = disconnect
        self.why = why or Why(
            _CAUSES_OF_ENDS.get(disconnect.code, Cause.APPLICATION), disconnect.reason
        )


_ENDS: Final = {
    ErrorCode.TOKEN_EXPIRED: EXPIRED,
    ErrorCode.EXPIRED: EXPIRED,
    ErrorCode.TOO_MANY_REQUESTS: TOO_MANY_REQUESTS,
    ErrorCode.PERMISSION_DENIED: PERMISSION_DENIED,
}


def end_for(error: ReplyError) -> Disconnect:
    """The end of a connection whose `connect` failed, where no reply can say so, or has said so.

    Clients come back after it, unless the user may not connect at all.
    """
    return _ENDS.get(error.code, SERVER_ERROR)


class BrokerError(RepeaterError):
    """A back end failed; the operation that it was asked for may have happened or not.

    `mend` says what to change, if that is known.
    """

    def __init__(self, text: str = "", mend: str = "") -> None:
        super().__init__(text)
        self.mend = mend

    def why(self, of: str = "the engine", cause: Cause = Cause.ENGINE) -> Why:
        """Why something was refused that needed a back end; the caller knows which one it asked.

        Without an `of`, the error's own text says which.
        """
        return Why(cause, ": ".join(filter(None, (of, str(self)))), self.mend)


class IntakeFullError(RepeaterError):
    """Fan-out did not make room within the publish deadline; nothing was published."""


@asynccontextmanager
async def open_service_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks serve the block: they are cancelled when the block ends.

    For the context managers of the library. An error of the block comes out as it is, never
    wrapped in a group: an `except ValueError` around `open_node` means the block's error.
    A group that the block raised is the block's own and stays one exception. When tasks failed
    as well, one group holds the block's error and the errors of the tasks. When only tasks
    failed, their group comes out, as from any nursery of Trio.

    The nursery's own scope is not for the block to cancel: the end of the block does.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                raised = error
            nursery.cancel_scope.cancel("the block has ended")
    except BaseException as error:
        failures = _without_cancelled(error)
        if raised is None:
            raise
        if failures is not None:
            # A task failed, so the Cancelled in the block may be this nursery's: it ends here.
            mine = _without_cancelled(raised)
            if mine is None:
                raise
            failed = failures.exceptions if isinstance(failures, BaseExceptionGroup) else [failures]
            message = "the block failed, and tasks that served it"
            raise BaseExceptionGroup(message, [mine, *failed]) from None
    try:
        # No task failed: if this is a Cancelled, its scope is one around the block.
        if raised is not None:
            raise raised
    finally:
        del raised  # its traceback refers to this frame


def _without_cancelled(error: BaseException) -> BaseException | None:
    """The error, or what is left of a group without its Cancelled; None if nothing is."""
    if isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None:
        return error.split(trio.Cancelled)[1]
    return None if isinstance(error, trio.Cancelled) else error
