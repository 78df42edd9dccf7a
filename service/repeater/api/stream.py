"""`stream`: events without end on one request, a JSON object a line, published as they arrive.

Each line is a `publish` body of its own, and fails alone. A full intake slows the sender down:
`feed` waits, so the connection is not read, and TCP makes the sender wait. Only the unfinished line
is kept in memory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.api.answers import ApiError, Result, api_error, encode
from repeater.api.budget import Budget
from repeater.api.publishing import IN_FLIGHT, PublishBody, outcome_of, submit
from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.protocol.http.answer import Answer
from repeater.protocol.json_reader import reader

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.node import Node

STREAM: Final = "stream"
STREAM_TIMEOUT: Final = 75.0
"""Seconds that a stream may send nothing. A blank line resets the time."""

_ERRORS: Final = 10  # failed lines that the summary names; the others are only counted

_decode = reader(PublishBody, around=1)


class LineError(msgspec.Struct, frozen=True):
    """A line that failed. Lines are numbered from 1, including blank ones."""

    line: int
    error: ApiError


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
        if self.stopped:
            status = 503
        stopped_at = 0 if status == 200 else self._stopped_at or self._line + 1
        summary = Summary(self._accepted, self._failed, self._errors, stopped_at)
        headers = (("Retry-After", "1"),) if status == 503 else ()
        return Answer(status, encode(Result(summary)), headers=headers)

    async def _take_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            if self._stopped_at:
                return
            if self._skipping:
                self._skipping = False
                self._fail(ErrorCode.LIMIT_EXCEEDED)
            elif len(line) > self._line_limit:
                self._fail(ErrorCode.LIMIT_EXCEEDED)
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
        except (IntakeFullError, BrokerError):
            self._stop(self._line + 1)
        except ReplyError as error:
            self._fail(error.code)
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
        except BrokerError:
            self._stop(line)
        except ReplyError as error:
            self._fail(error.code, line)
        else:
            self._accepted += 1

    def _stop(self, line: int) -> None:
        """Take no more lines. The sender goes on with this one, the first of those that failed."""
        self._stopped_at = min(line, self._stopped_at or line)

    def _fail(self, code: ErrorCode, line: int = 0) -> None:
        """Count a failed line, by default the present one."""
        self._failed += 1
        if len(self._errors) < _ERRORS:
            self._errors.append(LineError(line or self._line + 1, api_error(code)))


def _parse(line: bytes) -> PublishBody:
    """Decode one line.

    Raises:
        ReplyError: the line is not a JSON object of this shape (107).
    """
    try:
        return _decode(line)
    except msgspec.DecodeError:
        raise ReplyError(ErrorCode.BAD_REQUEST) from None
