"""A back end of plain async functions: a program answers the questions about its clients itself.

Rule: an error in a function costs the client that asked, and nobody else. It is logged with its
traceback, at most once a second for each kind, and the client gets error 100.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
import trio

from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.backend.contract import BackendStatistics, EndpointStatistics
from repeater.backend.options import CallbackKind
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, DisconnectError, IntakeFullError, ReplyError
from repeater.failures import Failures
from repeater.json_text import NOTHING, json_of, json_text
from repeater.protocol.centrifugo.commands import ConnectRequest
from repeater.protocol.json_faults import fault_of

G = TypeVar("G")

FUNCTION_TIMEOUT: Final = 3.0
"""Seconds for one answer, unless the program says otherwise: SDKs give up after five."""


class _Counts:
    """What became of the questions of one kind."""

    __slots__ = ("answered", "asked", "failed", "timeouts", "under_way")

    def __init__(self) -> None:
        self.asked = self.answered = self.failed = self.timeouts = self.under_way = 0

    def statistics(self) -> EndpointStatistics:
        return EndpointStatistics(
            asked=self.asked,
            answered=self.answered,
            failed=self.failed,
            timeouts=self.timeouts,
            refused=0,
            crowded=0,
            under_way=self.under_way,
            waiting=0,
            circuit="closed",
            opened=0,
        )


class BackendFunctions:
    """Implements `Backend` by functions of the program. It needs no end.

    Only the kinds that have a function are asked. A function runs in the task of the client that
    asks, which does nothing else meanwhile; so there is at most one question of a connection at a
    time, and one for each renewal. A function that needs a bound of its own takes a
    `trio.CapacityLimiter`. It refuses by raising `ReplyError` or `ApplicationError`, and ends the
    connection by `DisconnectError`.
    """

    def __init__(
        self,
        *,
        connect: Callable[[Caller, ConnectRequest], Awaitable[ConnectionGrant]] | None = None,
        refresh: Callable[[Caller], Awaitable[Renewal]] | None = None,
        subscribe: Callable[[Caller, str, bytes], Awaitable[SubscriptionGrant]] | None = None,
        publish: Callable[[Caller, str, bytes], Awaitable[PublicationGrant]] | None = None,
        sub_refresh: Callable[[Caller, str], Awaitable[Renewal]] | None = None,
        rpc: Callable[[Caller, str, bytes], Awaitable[object]] | None = None,
        timeout: float = FUNCTION_TIMEOUT,
        forward_headers: Iterable[str] = (),
        forward_emulated_headers: Iterable[str] = (),
    ) -> None:
        """Take the functions; without one, this kind of question is not asked.

        Args:
            connect: Who is the caller? Asked for a connection without a token; without a verifier
                of tokens, for each, and the token is in the request.
            refresh: May a connection go on after its expiry?
            subscribe: May the caller hear this channel? Takes its name and the data of the command.
                Asked in namespaces with `subscribe_proxy_enabled`.
            publish: May the caller publish this data into this channel? Asked in namespaces with
                `publish_proxy_enabled`.
            sub_refresh: May a subscription go on after its expiry? Asked in namespaces with
                `sub_refresh_proxy_enabled`.
            rpc: Answers a call: takes its method and data, and returns anything that JSON can
                write. `bytes` are JSON already, for a client that speaks Protobuf any bytes; None
                is an answer without a result.
            timeout: Seconds for one answer. Then the function is cancelled, and the client gets
                error 100.
            forward_headers: Headers of a client's HTTP request that `Caller.headers` has.
            forward_emulated_headers: Headers in a client's connect command that it has, too.
        """
        given: dict[CallbackKind, Callable[..., Awaitable[Any]] | None] = {
            "connect": connect,
            "refresh": refresh,
            "subscribe": subscribe,
            "publish": publish,
            "sub_refresh": sub_refresh,
            "rpc": rpc,
        }
        if timeout <= 0:
            raise ValueError("timeout must be above 0")
        self._functions = {kind: one for kind, one in given.items() if one is not None}
        self._timeout = timeout
        self._counts = {kind: _Counts() for kind in self._functions}
        self._failures = Failures()
        self.kinds = frozenset(self._functions)
        self.forward_headers = frozenset(name.lower() for name in forward_headers)
        self.forward_emulated_headers = frozenset(name.lower() for name in forward_emulated_headers)

    def statistics(self) -> BackendStatistics:
        """A snapshot."""
        return BackendStatistics({kind: one.statistics() for kind, one in self._counts.items()})

    async def connect(self, caller: Caller, request: ConnectRequest) -> ConnectionGrant:
        """Who is the caller, and which channels does the caller hear? Raises as `Backend` says."""
        return await self._ask("connect", _one_of(ConnectionGrant), caller, request)

    async def refresh(self, caller: Caller) -> Renewal:
        """May a connection go on after its expiry? Raises as `Backend` says."""
        return await self._ask("refresh", _one_of(Renewal), caller)

    async def subscribe(
        self, caller: Caller, channel: str, _token: str, data: bytes
    ) -> SubscriptionGrant:
        """May the caller hear this channel? Raises as `Backend` says."""
        return await self._ask("subscribe", _one_of(SubscriptionGrant), caller, channel, data)

    async def publish(self, caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        """May the caller publish this data? Raises as `Backend` says."""
        return await self._ask("publish", _one_of(PublicationGrant), caller, channel, data)

    async def sub_refresh(self, caller: Caller, channel: str) -> Renewal:
        """May a subscription go on after its expiry? Raises as `Backend` says."""
        return await self._ask("sub_refresh", _one_of(Renewal), caller, channel)

    async def rpc(self, caller: Caller, method: str, data: bytes) -> bytes:
        """Answer a call: any bytes, or empty without a result. Raises as `Backend` says."""

        def read(result: object) -> bytes:
            if result is None or (isinstance(result, bytes) and not result):
                return NOTHING
            if isinstance(result, bytes):
                return result if caller.protocol == "protobuf" else json_text(result)
            return json_of(result)

        return await self._ask("rpc", read, caller, method, data)

    async def _ask(
        self, kind: CallbackKind, read: Callable[[object], G], caller: Caller, *more: object
    ) -> G:
        """Call a function, and read what it returns. The boundary around one question.

        Raises:
            ReplyError, DisconnectError: the function refuses.
            BrokerError: the function failed, or took too long.

        If it is cancelled, what failed in the function then is logged, and ends nobody else.
        """
        counts = self._counts[kind]
        counts.asked += 1
        counts.under_way += 1
        try:
            with trio.move_on_after(self._timeout):
                found = read(await self._functions[kind](caller, *more))
                counts.answered += 1
                return found
        except (ReplyError, DisconnectError) as error:
            counts.answered += 1
            _explain(error)
            raise
        except BrokerError:
            counts.failed += 1
            raise
        except IntakeFullError:  # it wanted to publish
            counts.failed += 1
            raise BrokerError("the program's function found no room to publish") from None
        except Exception as error:  # the boundary: the program's function runs for one client
            counts.failed += 1
            self._failures.note(f"the function {kind}", error)
            raise BrokerError(f"the program's function failed: {type(error).__name__}") from None
        except BaseExceptionGroup as group:  # of a nursery in the function, which was cancelled
            counts.failed += 1
            cancelled, failed = group.split(trio.Cancelled)
            if cancelled is None or not isinstance(failed, ExceptionGroup):
                raise
            self._failures.note(f"the function {kind}", failed)
            raise cancelled from None
        finally:
            counts.under_way -= 1
        counts.failed += 1
        counts.timeouts += 1
        late = BrokerError(f"the program's function took longer than {self._timeout:g} s")
        self._failures.note(f"the function {kind}", late)
        raise late


def _one_of(grant: type[G]) -> Callable[[object], G]:
    """What a function returns has to be of this class: None is a mistake, and grants nothing.

    Its fields are looked at, too. A user's id that is a number would be another user elsewhere.
    """

    def read(found: object) -> G:
        if not isinstance(found, grant):
            raise TypeError(f"expected a {grant.__name__}, and not a {type(found).__name__}")
        try:
            plain = msgspec.to_builtins(found, builtin_types=(bytes,), enc_hook=_plain_bytes)
            msgspec.convert(plain, grant)
        except msgspec.ValidationError as error:
            raise TypeError(f"a {grant.__name__}: {fault_of(error)}") from None
        return found

    return read


def _plain_bytes(found: object) -> bytes:
    """JSON text that was checked, as the bytes that it is."""
    if isinstance(found, bytes):
        return bytes(found)
    raise TypeError(f"a grant has no field of the class {type(found).__name__}")


def _explain(error: ReplyError | DisconnectError) -> None:
    """Say that the program refused, if the function gave no reason of its own."""
    text = error.message if isinstance(error, ReplyError) else error.disconnect.reason
    if error.why.text == text:
        error.why = Why(Cause.APPLICATION, f"the program's own function refused: {text}")
