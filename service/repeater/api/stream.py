"""`stream`: events without end on one request, a JSON object a line, published as they arrive.

Each line is a `publish` body of its own, and fails alone. A full intake slows the sender down:
`feed` waits, so the connection is not read, and TCP makes the sender wait. Only the unfinished line
is kept in memory.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.api.answers import (
    INTAKE_FULL,
    SHUTTING_DOWN,
    ApiError,
    CallRefusal,
    api_error,
    encode,
)
from repeater.api.budget import Budget
from repeater.api.methods import METHODS
from repeater.api.publishing import IN_FLIGHT, PublishBody, outcome_of, submit
from repeater.api.refusals import body_of, note, note_refusal, reply_error
from repeater.api.wrong_body import unreadable
from repeater.brokers.receipts import Receipt
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.protocol.http.answer import Answer

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.node import Node

STREAM: Final = "stream"
STREAM_TIMEOUT: Final = 75.0
"""Seconds that a stream may send nothing. A blank line resets the time."""

_ERRORS: Final = 10  # failed lines that the summary names; the others are only counted
_PUBLISH: Final = METHODS["publish"]
_BREAKS: Final = {
    400: CallRefusal(
        HTTPStatus.BAD_REQUEST,
        Why(Cause.REQUEST, "the body's chunks are broken", "see Transfer-Encoding in RFC 9112"),
    ),
    408: CallRefusal(
        HTTPStatus.REQUEST_TIMEOUT,
        Why(Cause.REQUEST, f"nothing came for {STREAM_TIMEOUT:.0f} s", "send an empty line"),
    ),
    503: SHUTTING_DOWN,
}
"""Why a body was broken off, by the answer's status."""


class LineError(msgspec.Struct, frozen=True):
    """A line that failed. Lines are numbered from 1, including blank ones."""

    line: int
    error: ApiError


class StreamAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a stream: always its summary, and why it was broken off if it was."""

    result: Summary
    error: ApiError | None = None


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a stream. `stopped_at` is the first line that was not processed."""

    accepted: int = msgspec.field(default=-1)
    failed: int = msgspec.field(default=-1)
    errors: list[LineError] | None = None
    stopped_at: int = 0


class EventStream:
    """Takes one body's bytes as they come. Lives inside one request; ended by `end`."""

    def __init__(self, node: Node, line_limit: int) -> None:
        self._node = node
        self._line_limit = line_limit
        self._budget = Budget(node.options.fanout_budget)
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._skipping = False  # the line under way is too long, and its bytes are dropped
        self._line = 0
        self._accepted = 0
        self._failed = 0
        self._errors: list[LineError] = []
        # The lines that wait for the back end's answer, oldest first.
        self._open: deque[tuple[int, Receipt[Outcome]]] = deque()
        self._stopped_at = 0
        self._stopped_by: CallRefusal | None = None

    @property
    def stopped(self) -> bool:
        """Whether there was no room in time, or the back end failed: no more lines are taken."""
        return self._stopped_at > 0

    async def feed(self, data: bytes) -> None:
        """Publish the lines that `data` completes; waits while the intake is full.

        A checkpoint at least once in a turn's time. Cancelled, the events published so far stay
        published.
        """
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial, self._partial_size = [], 0
            await self._take_lines(lines)
        if rest and not self._skipping:
            self._partial.append(rest)
            self._partial_size += len(rest)
            if self._partial_size > self._line_limit:
                self._partial, self._partial_size, self._skipping = [], 0, True

    async def end(self) -> None:
        """Publish the last line, which may have no line feed: the body is complete."""
        if self._partial or self._skipping:
            await self.feed(b"\n")

    async def answer(self, status: int = 200) -> Answer:
        """The summary: 200 for a whole body, 503 if it stopped, or the `status` of a break.

        Waits for the back end's answers to the lines that were published.
        """
        while self._open:
            await self._heed_oldest()
            await self._budget.give_way()
        broken = self._stopped_by or _BREAKS.get(status)
        stopped_at = 0 if broken is None else self._stopped_at or self._line + 1
        summary = Summary(self._accepted, self._failed, self._errors, stopped_at)
        if broken is None:
            return Answer(200, encode(StreamAnswer(summary)))
        note_refusal(self._node, STREAM, broken)
        body = encode(StreamAnswer(summary, broken.error))
        return Answer(int(broken.status), body, headers=broken.headers)

    async def _take_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            if self._stopped_at:
                return
            if self._skipping:
                self._skipping = False
                self._fail(self._too_long())
            elif len(line) > self._line_limit:
                self._fail(self._too_long())
            elif line and not line.isspace():
                await self._take(line)
            self._line += 1
            if self._budget.spent:
                await self._budget.give_way()
                await self._heed_settled()
        await self._heed_settled()

    async def _take(self, line: bytes) -> None:
        try:
            body = _parse(line)
            answer = await submit(self._node, body, body.channel, self._budget)
        except (IntakeFullError, BrokerError) as error:
            self._stop(self._line + 1, error)
        except ReplyError as error:
            read = body_of(_PUBLISH, line)
            self._fail(reply_error(error, _PUBLISH, read, line), read)
        else:
            if isinstance(answer, Receipt):
                self._open.append((self._line + 1, answer))
                if len(self._open) >= IN_FLIGHT:
                    await self._heed_oldest()
            else:
                self._accepted += 1

    async def _heed_settled(self) -> None:
        """Count the oldest lines that are answered."""
        waiting = self._open
        while waiting:
            receipt = waiting[0][1]
            if receipt.succeeded:  # almost all of them
                waiting.popleft()
                self._accepted += 1
            elif receipt.settled:
                await self._heed_oldest()
            else:
                break

    async def _heed_oldest(self) -> None:
        line, receipt = self._open.popleft()
        try:
            await outcome_of(self._node, receipt, self._budget)
        except BrokerError as error:
            self._stop(line, error)
        except ReplyError as error:
            self._fail(error, line=line)
        else:
            self._accepted += 1

    def _stop(self, line: int, fault: IntakeFullError | BrokerError) -> None:
        """Take no more lines. The sender goes on with this one, the first of those that failed."""
        self._stopped_at = min(line, self._stopped_at or line)
        if isinstance(fault, BrokerError):
            error = reply_error(fault)
            self._stopped_by = CallRefusal(
                HTTPStatus.SERVICE_UNAVAILABLE, error.why, INTAKE_FULL.headers, error.code
            )
        else:
            self._stopped_by = SHUTTING_DOWN if self._node.draining else INTAKE_FULL

    def _fail(self, error: ReplyError, body: object = None, *, line: int = 0) -> None:
        """Count and log a failed line, by default the present one.

        Each is logged, within the limit of the log, since a stream may last for days.
        """
        line = line or self._line + 1
        self._failed += 1
        if len(self._errors) < _ERRORS:
            self._errors.append(LineError(line, api_error(error)))
        note(self._node, STREAM, error, body, at=f"line {line}")

    def _too_long(self) -> ReplyError:
        text = f"the line has more than {self._line_limit} bytes"
        why = Why(Cause.LIMIT, text, "see body_limit")
        return ReplyError(ErrorCode.LIMIT_EXCEEDED, why=why)


def _parse(line: bytes) -> PublishBody:
    """Decode one line.

    Raises:
        ReplyError: the line is not a JSON object of this shape (107).
    """
    try:
        body: PublishBody = _PUBLISH.decode(line)
    except msgspec.DecodeError as error:
        why = unreadable(error, line, "the line")
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why) from None
    return body
