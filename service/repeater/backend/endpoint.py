"""One address of the back end: post a body, and get a body or an error.

Rule: whatever the back end does, each call returns within `wait_timeout` plus `timeout`, and calls
to other addresses are not delayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import httpx
import msgspec
import trio

from repeater import __version__
from repeater.backend import signature
from repeater.backend.circuit import Circuit
from repeater.backend.contract import EndpointStatistics
from repeater.backend.options import CallbackKind, CallbackOptions
from repeater.backend.wire import Refusal, meaning
from repeater.errors import BrokerError
from repeater.log import get_logger

_log = get_logger("callbacks")

G = TypeVar("G")

_DOWN: Final = frozenset({502, 503, 504})  # a proxy's answers when the server behind it is down


class Answer(msgspec.Struct, frozen=True):
    """A status and a body. The body is empty unless the status is a success."""

    status: int
    body: bytes


class UnusableError(BrokerError):
    """There was an answer, but it has no usable meaning."""


class UnansweredError(BrokerError):
    """The answer did not come, or not all of it. `timeout` is true if the deadline passed."""

    def __init__(self, reason: str, *, timeout: bool = False) -> None:
        super().__init__(reason)
        self.timeout = timeout


async def post(
    client: httpx.AsyncClient,
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    secret: str,
    timeout: float,
    limit: int,
) -> Answer:
    """Post JSON, signed if there is a secret. Redirects are answers like any other.

    Raises:
        UnansweredError: no answer, or not all of it, came within the timeout.
        UnusableError: the answer is longer than the limit.
    """
    sent = {
        "user-agent": f"repeater/{__version__}",
        **headers,
        "accept": "application/json",
        # A compressed body could be short on the wire and long in memory.
        "accept-encoding": "identity",
        "content-type": "application/json",
    }
    if secret:
        sent[signature.HEADER] = signature.sign(secret, int(time.time()), body)
    received = bytearray()
    status = 0
    with trio.move_on_after(timeout) as scope:
        try:
            async with client.stream("POST", url, content=body, headers=sent) as response:
                status = response.status_code
                if response.is_success:
                    async for chunk in response.aiter_raw():
                        received += chunk
                        if len(received) > limit:
                            # Cancel instead of raise: only this ends the client's generators too.
                            scope.cancel()
        except httpx.HTTPError as error:
            raise UnansweredError(type(error).__name__) from error
    if len(received) > limit:
        raise UnusableError("the answer is too long")
    if scope.cancelled_caught:
        raise UnansweredError("no answer in time", timeout=True)
    return Answer(status, bytes(received))


class Endpoint:
    """One address with its turns, circuit and counters. Lives inside an `HTTPBackend`."""

    def __init__(
        self, kind: CallbackKind, options: CallbackOptions, client: httpx.AsyncClient
    ) -> None:
        self._kind = kind
        self._url = options.url(kind)
        self._options = options
        self._meanings = options.meanings
        self._client = client
        # First come, first served. The waiting questions belong to connections, and time out.
        self._turns = trio.Semaphore(options.concurrency)
        self._circuit = Circuit(options.circuit_failures, options.circuit_pause)
        self._asked = self._answered = self._failed = self._timeouts = 0
        self._refused = self._crowded = self._waiting = 0
        self._failing = False

    def statistics(self) -> EndpointStatistics:
        """A snapshot."""
        return EndpointStatistics(
            asked=self._asked,
            answered=self._answered,
            failed=self._failed,
            timeouts=self._timeouts,
            refused=self._refused,
            crowded=self._crowded,
            under_way=self._options.concurrency - self._turns.value,
            waiting=self._waiting,
            circuit=self._circuit.state,
            opened=self._circuit.opened,
        )

    async def ask(
        self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], G | Refusal]
    ) -> G | Refusal:
        """Post a question, and return what `read` makes of the body, or the status's meaning.

        Waits for its turn, then for the answer, each with its own deadline. Cancelled, the
        question may have been asked.

        Raises:
            BrokerError: the answer is missing, or unusable (`read` raises ValueError).
        """
        self._asked += 1
        if self._circuit.refuses:
            raise self._refusal()
        await self._wait_turn()
        try:
            if self._circuit.refuses:  # the circuit opened during the wait
                raise self._refusal()
            found = self._understand(await self._send(body, headers), read)
        except UnansweredError as error:
            self._timeouts += error.timeout
            self._note_failure(error)
            raise
        except UnusableError as error:
            self._note_failure(error)
            raise
        finally:
            self._turns.release()
        self._answered += 1
        self._failing = False
        return found

    def _refusal(self) -> BrokerError:
        self._refused += 1
        return BrokerError("taken for down")

    def _note_failure(self, error: BrokerError) -> None:
        """Count a failure, and log it if the question before it did not fail."""
        self._failed += 1
        if not self._failing:
            _log.warning("callbacks fail", kind=self._kind, reason=str(error))
        self._failing = True

    async def _wait_turn(self) -> None:
        self._waiting += 1
        try:
            with trio.fail_after(self._options.wait_timeout):
                await self._turns.acquire()
        except trio.TooSlowError:
            self._crowded += 1
            raise BrokerError("too many at once") from None
        finally:
            self._waiting -= 1

    async def _send(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post the question, and tell the circuit whether there was an answer, of any kind."""
        probe = self._circuit.admit()
        options = self._options
        try:
            answer = await post(
                self._client,
                self._url,
                body,
                headers=headers,
                secret=options.secret,
                timeout=options.timeout,
                limit=options.response_limit,
            )
        except UnansweredError:
            self._circuit.failed(probe=probe)
            raise
        except UnusableError:
            self._circuit.succeeded()
            raise
        except BaseException:  # cancelled, or a bug of ours
            self._circuit.abandoned(probe=probe)
            raise
        if answer.status in _DOWN:
            self._circuit.failed(probe=probe)
        else:
            self._circuit.succeeded()
        return answer

    def _understand(self, answer: Answer, read: Callable[[bytes], G | Refusal]) -> G | Refusal:
        if answer.status in self._meanings:
            return meaning(self._meanings[answer.status])
        if answer.status != httpx.codes.OK:
            raise UnusableError(f"answered {answer.status}")
        try:
            return read(answer.body)
        except ValueError as error:
            raise UnusableError(f"the answer is not usable: {error}") from None
