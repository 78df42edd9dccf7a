"""Submissions on their way to the engine, in lanes: each has one script under way.

What comes meanwhile gathers, and goes in the next script together: alone when little happens, many
at a time when much does. A channel is always in the same lane. So the order of submission is the
order in the stream, also when a script has to be sent once more (an unknown script, a slot that
moves): nothing of its channel is under way beside it.

Submissions are bounded in number and in bytes by the window; a full one refuses (`WouldBlock`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.valkey.scripts import PUBLISH
from repeater.errors import BrokerError
from repeater.publication import StreamPosition
from repeater.valkey.pipe import Lost, Refused

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.brokers.receipts import Receipt
    from repeater.brokers.window import Window
    from repeater.valkey.pipe import Part

MANY: Final = 128
"""Most submissions of one script: about 1.5 ms of the engine's time."""
_BYTES: Final = 262_144  # of their envelopes, except that one alone always goes


class Submission:
    """One publication or announcement that waits for its script. Made by the broker."""

    __slots__ = ("arguments", "keys", "receipt", "weight")

    def __init__(
        self,
        keys: tuple[bytes, bytes, bytes],
        arguments: tuple[Part, ...],
        weight: int,
        receipt: Receipt[Outcome] | None,
    ) -> None:
        self.keys = keys
        self.arguments = arguments
        self.weight = weight
        self.receipt = receipt
        """None for an announcement, whose answer nobody waits for."""


Ask = Callable[[int, bytes, Callable[[object], None]], None]
"""Sends a command to the server of a lane. Raises `Lost`."""


class Lane:
    """One lane. Lives inside `Lanes`."""

    __slots__ = ("busy", "number", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: deque[Submission] = deque()
        self.busy = False
        """Whether a script is under way, or is to be sent in this pass of the loop."""


class Lanes:
    """All lanes of a broker, whose nursery runs `run`."""

    def __init__(self, count: int, verb: bytes, ask: Ask, window: Window) -> None:
        """Publish by `verb`: PUBLISH or SPUBLISH."""
        self._lanes = [Lane(number) for number in range(count)]
        self._verb = verb
        self._ask = ask
        self._window = window
        self._ready: list[Lane] = []
        self._came = trio.lowlevel.ParkingLot()

    def put(self, number: int, submission: Submission) -> None:
        """Take a submission, for which the window had room. Never waits."""
        lane = self._lanes[number]
        lane.waiting.append(submission)
        self._window.take(submission.weight)
        if not lane.busy:
            self._make_ready(lane)

    def _make_ready(self, lane: Lane) -> None:
        lane.busy = True
        self._ready.append(lane)
        self._came.unpark()

    async def run(self) -> None:
        """Send what gathered in a pass of the loop, until cancelled."""
        while True:
            while not self._ready:  # No deadline: nobody publishes.
                await self._came.park()
            ready, self._ready = self._ready, []
            for lane in ready:
                self._send(lane, self._next(lane))
            await trio.lowlevel.checkpoint()

    def _next(self, lane: Lane) -> list[Submission]:
        waiting, taken, size = lane.waiting, [], 0
        while waiting and len(taken) < MANY and (size < _BYTES or not taken):
            taken.append(waiting.popleft())
            size += taken[-1].weight
        return taken

    def _send(self, lane: Lane, batch: list[Submission], *, whole: bool = False) -> None:
        keys = [key for one in batch for key in one.keys]
        arguments = [self._verb, *(part for one in batch for part in one.arguments)]
        make = PUBLISH.whole_command if whole else PUBLISH.command
        try:
            self._ask(lane.number, make(keys, arguments), partial(self._answered, lane, batch))
        except Lost as error:
            self._fail(lane, batch, BrokerError(f"the engine is not there: {error}"))

    def _answered(self, lane: Lane, batch: list[Submission], answer: object) -> None:
        if isinstance(answer, Refused) and answer.code == "NOSCRIPT":
            self._send(lane, batch, whole=True)
        elif isinstance(answer, list) and len(answer) == len(batch):
            self._settle(batch, answer)
            self._go_on(lane)
        else:
            self._fail(lane, batch, _failure(answer))

    def _settle(self, batch: list[Submission], answers: list[object]) -> None:
        for submission, answer in zip(batch, answers, strict=True):
            if submission.receipt is not None:
                submission.receipt.settle(_outcome(answer))
        self._window.give_back(sum(one.weight for one in batch), len(batch))

    def _fail(self, lane: Lane, batch: list[Submission], error: BrokerError) -> None:
        for submission in batch:
            if submission.receipt is not None:
                submission.receipt.settle(error)
        self._window.give_back(sum(one.weight for one in batch), len(batch))
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        lane.busy = False
        if lane.waiting:
            self._make_ready(lane)


def _outcome(answer: object) -> Outcome | BrokerError:
    if answer == b"":
        return None
    try:
        assert isinstance(answer, bytes)
        offset, epoch = answer.split(b" ")
        return StreamPosition(int(offset), epoch.decode())
    except (AssertionError, ValueError):
        return BrokerError("the engine's answer cannot be read")


def _failure(answer: object) -> BrokerError:
    if isinstance(answer, Lost):
        return BrokerError(f"{answer}; it may have been published")
    if isinstance(answer, Refused):
        return BrokerError(f"the engine refused: {answer.code}")
    return BrokerError("the engine's answer cannot be read; it may have been published")
