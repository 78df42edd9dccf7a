"""One address of the back end: post a body, and get a body or an error.

Rule: whatever the back end does, each call returns within `wait_timeout` plus `timeout`, and calls
to other addresses are not delayed. Whatever a client asks, the others get their turns (`turns`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Final, TypeVar

import httpx
import msgspec
import trio

from repeater import __version__
from repeater.access.grants import Caller
from repeater.access.http_client import failure_of, parts_of
from repeater.backend import signature
from repeater.backend.circuit import Circuit
from repeater.backend.contract import EndpointStatistics
from repeater.backend.options import CallbackKind, CallbackOptions
from repeater.backend.turns import Lines, Turns
from repeater.backend.wire import Refusal, meaning
from repeater.errors import BrokerError
from repeater.log import get_logger

_log = get_logger("callbacks")

G = TypeVar("G")

_DOWN: Final = frozenset({502, 503, 504})  # a proxy's answers when the server behind it is down

_EXAMPLES: Final[Mapping[CallbackKind, str]] = {
    "connect": '{"result": {"user": "42"}}',
    "refresh": '{"result": {"expire_at": 1700000600}}',
    "subscribe": '{"result": {}}',
    "publish": '{"result": {}}',
    "sub_refresh": '{"result": {"expire_at": 1700000600}}',
    "rpc": '{"result": {"data": {}}}',
}
"""Answers that say yes."""

_PAUSE: Final = 1.0  # seconds between two lines of log about failures


class Answer(msgspec.Struct, frozen=True):
    """A status and a body. The body is empty unless the status is a success."""

    status: int
    body: bytes


class UnusableError(BrokerError):
    """There was an answer, but it has no usable meaning."""


class UnansweredError(BrokerError):
    """The answer did not come, or not all of it. `timeout` is true if the deadline passed."""

    def __init__(self, reason: str, mend: str = "", *, timeout: bool = False) -> None:
        super().__init__(reason, mend)
        self.timeout = timeout


async def post(
    client: httpx.AsyncClient,
    url: str,
    body: bytes,
    *,
    kind: str,
    headers: Mapping[str, str],
    secret: str,
    timeout: float,
    limit: int,
) -> Answer:
    """Post JSON, signed if there is a secret. Redirects are answers like any other.

    The signature covers the kind of callback and the target of the URL beside the body, so that a
    callback that somebody has read cannot be sent to another address.

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
        target = httpx.URL(url).raw_path
        sent[signature.HEADER] = signature.sign(secret, int(time.time()), kind, target, body)
    received = bytearray()
    status = 0
    with trio.move_on_after(timeout) as scope:
        try:
            async with client.stream("POST", url, content=body, headers=sent) as response:
                status = response.status_code
                if response.is_success:
                    async for chunk in parts_of(response):
                        received += chunk
                        if len(received) > limit:
                            # Cancel instead of raise: only this ends the client's generators too.
                            scope.cancel()
        except httpx.HTTPError as error:
            raise UnansweredError(failure_of(error), _mend_address(url, kind)) from error
    if len(received) > limit:
        raise UnusableError(f"the answer is longer than {limit} bytes", "see response_limit")
    if scope.cancelled_caught:
        mend = "answer sooner, or see " + ("event_timeout" if kind == "events" else "timeout")
        raise UnansweredError(f"no answer in {timeout:g} s", mend, timeout=True)
    return Answer(status, bytes(received))


def _mend_address(url: str, kind: str) -> str:
    """Where the back end should answer. The rest of a URL may hold a secret."""
    setting = "event_url" if kind == "events" else f"{kind}_url"
    address = httpx.URL(url)
    where = f"{address.scheme}://{address.netloc.decode()}"
    return f"does the back end run at {where}? See {setting}"


def _mend_status(status: int, kind: CallbackKind) -> str:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "does the back end check the signature with the same secret?"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) or 300 <= status < 400:
        return f"does it take POST at the path of {kind}_url? Redirects are not followed"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "see the back end's log"
    return f"answer 200 and {_EXAMPLES[kind]}, or give the status a meaning by status_codes"


class Endpoint:
    """One address with its turns, circuit and counters. Lives inside an `HTTPBackend`."""

    def __init__(
        self,
        kind: CallbackKind,
        options: CallbackOptions,
        client: httpx.AsyncClient,
        lines: Lines,
    ) -> None:
        self._kind = kind
        self._url = options.url(kind)
        self._options = options
        self._meanings = options.meanings
        self._client = client
        self._lines = lines
        self._turns = Turns(options.concurrency)
        self._circuit = Circuit(options.circuit_failures, options.circuit_pause)
        self._asked = self._answered = self._failed = self._timeouts = 0
        self._refused = self._crowded = self._waiting = 0
        self._failing = False
        self._last = BrokerError("no answer")
        self._told = -_PAUSE

    def statistics(self) -> EndpointStatistics:
        """A snapshot."""
        return EndpointStatistics(
            asked=self._asked,
            answered=self._answered,
            failed=self._failed,
            timeouts=self._timeouts,
            refused=self._refused,
            crowded=self._crowded,
            under_way=self._turns.taken,
            waiting=self._waiting,
            circuit=self._circuit.state,
            opened=self._circuit.opened,
        )

    async def ask(
        self, body: bytes, caller: Caller, read: Callable[[bytes], G | Refusal]
    ) -> G | Refusal:
        """Post a caller's question, and return what `read` makes of the body, or of the status.

        Waits for its turn, then for the answer, each with its own deadline. Cancelled, the
        question may have been asked.

        Raises:
            BrokerError: the answer is missing, or unusable (`read` raises ValueError).
        """
        self._asked += 1
        party = caller.party or caller.client
        if self._circuit.refuses(party):
            raise self._refusal()
        async with self._turn(caller.client, party):
            if self._circuit.refuses(party):  # the circuit opened during the wait
                raise self._refusal()
            try:
                found = self._understand(await self._send(body, caller.headers, party), read)
            except UnansweredError as error:
                self._timeouts += error.timeout
                self._note_failure(error)
                raise
            except UnusableError as error:
                self._note_failure(error)
                raise
        self._answered += 1
        self._failing = False
        return found

    def _refusal(self) -> BrokerError:
        self._refused += 1
        failures, last = self._options.circuit_failures, self._last
        text = f"it is taken for down, because it failed {failures} times in a row"
        return BrokerError(f"{text}; last: {last}", last.mend)

    def _note_failure(self, error: BrokerError) -> None:
        """Count a failure, and log it if the question before it did not fail.

        One line a second at most: a client may ask what fails and what does not, in turn.
        """
        self._failed += 1
        self._last = error
        now = trio.current_time()
        if not self._failing and now >= self._told + _PAUSE:
            self._told = now
            _log.warning("callbacks fail", kind=self._kind, reason=str(error), mend=error.mend)
        self._failing = True

    @asynccontextmanager
    async def _turn(self, client: str, party: str) -> AsyncIterator[None]:
        """Hold a turn for the block, after a wait of at most `wait_timeout`.

        Raises:
            BrokerError: no turn came in time.
        """
        async with AsyncExitStack() as stack:
            self._waiting += 1
            try:
                with trio.fail_after(self._options.wait_timeout):
                    if client:  # unknown only where a program asks by itself
                        await stack.enter_async_context(self._lines.first_of(client))
                    await self._turns.take(party)
            except trio.TooSlowError:
                self._crowded += 1
                text = f"no turn in {self._options.wait_timeout:g} s, too many questions wait"
                raise BrokerError(text, "answer faster, or see concurrency") from None
            finally:
                self._waiting -= 1
            stack.callback(self._turns.give_back, party)
            yield

    async def _send(self, body: bytes, headers: Mapping[str, str], party: str) -> Answer:
        """Post the question, and tell the circuit whether there was an answer, of any kind."""
        probe = self._circuit.admit()
        options = self._options
        try:
            answer = await post(
                self._client,
                self._url,
                body,
                kind=self._kind,
                headers=headers,
                secret=options.secret,
                timeout=options.timeout,
                limit=options.response_limit,
            )
        except UnansweredError:
            self._circuit.failed(party, probe=probe)
            raise
        except UnusableError:
            self._circuit.succeeded()
            raise
        except BaseException:  # cancelled, or a bug of ours
            self._circuit.abandoned(probe=probe)
            raise
        if answer.status in _DOWN:
            self._circuit.failed(party, probe=probe)
        else:
            self._circuit.succeeded()
        return answer

    def _understand(self, answer: Answer, read: Callable[[bytes], G | Refusal]) -> G | Refusal:
        if answer.status in self._meanings:
            return meaning(self._meanings[answer.status])
        if answer.status != httpx.codes.OK:
            mend = _mend_status(answer.status, self._kind)
            raise UnusableError(f"answered {answer.status}", mend)
        try:
            return read(answer.body)
        except ValueError as error:
            raise UnusableError(str(error), f"answer {_EXAMPLES[self._kind]}") from None
