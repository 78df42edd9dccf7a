"""Submissions on their way to the engine, in lanes: each has one script under way.

What comes meanwhile gathers, and goes in the next script together: alone when little happens, many
at a time when much does. A channel is always in the same lane. So the order of submission is the
order in the stream, also when a script has to be sent once more (it is unknown, a slot moves):
nothing of its channel is under way beside it.

Submissions are bounded in number and in bytes by the window; a full one refuses (`WouldBlock`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from repeater.brokers.source_rows import AfterError, DeposedError
from repeater.brokers.valkey.scripts import PUBLISH, NewEpoch, new_epoch
from repeater.brokers.valkey.warning_limit import WarningLimit
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import StreamPosition
from repeater.valkey.pipe import Lost, Refused

if TYPE_CHECKING:
    from repeater.brokers.window import Window
    from repeater.valkey.pipe import Part, Tell

_log = get_logger("engine")

MANY: Final = 128
"""Most submissions of one script: about 1.5 ms of the engine's time."""
_BYTES: Final = 262_144  # weight of one script's submissions, except that one alone always goes
_SHOWN: Final = 100  # characters of what the engine says

Kept = tuple[int, int, int]
"""How many publications are kept, and milliseconds until they and their stream are forgotten."""


class Submission(NamedTuple):
    """One thing that waits for its script. Made by the broker."""

    keys: tuple[bytes, ...]
    instructions: tuple[Part, ...]
    """As in publish.lua."""
    kept: Kept | None
    """For a publication that is kept."""
    weight: int
    tell: Callable[[StreamPosition | BrokerError | None], object]
    """Takes the outcome."""


Ask = Callable[[int, bytes, "Tell"], None]
"""Sends a command to the server of a partition. Raises `Lost`."""


class _Lane:
    """One lane. Lives inside `Lanes`."""

    __slots__ = ("alone", "busy", "partition", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting: deque[Submission] = deque()
        self.alone = False
        """Whether the last script had one submission: then the next one waits for no others."""
        self.busy = False
        """Whether a script is under way, or is to be sent in this pass of the loop."""


class Lanes:
    """All lanes of a broker, whose nursery runs `run`."""

    def __init__(
        self,
        partitions: int,
        of_each: int,
        verb: bytes,
        ask: Ask,
        window: Window,
        epochs: NewEpoch = new_epoch,
    ) -> None:
        """Publish by `verb`: PUBLISH or SPUBLISH; with so many lanes of each partition."""
        self._new_epoch = epochs
        self.of_each = of_each
        """The lanes of each partition."""
        self._lanes = [_Lane(number // of_each) for number in range(partitions * of_each)]
        self._verb = verb
        self._ask = ask
        self._window = window
        self._ready: list[_Lane] = []
        self._came = trio.lowlevel.ParkingLot()
        self._ended = False
        self._warnings = WarningLimit(_log)
        self.scripts = 0
        """Scripts that were sent."""
        self.foreign = 0
        """Streams that had to begin anew, since a key of theirs was not ours."""

    def put(self, partition: int, channel: str, submission: Submission) -> None:
        """Take a submission, for which the window had room. Never waits.

        After the end of `run` it fails, at once or with what is under way.
        """
        of_each = self.of_each
        self._put(self._lanes[partition * of_each + hash(channel) % of_each], submission)

    def put_in_all(self, partition: int, submission: Submission) -> None:
        """Take a submission for each lane of a partition: behind all that the partition has.

        Its `tell` is called for each of them. Needs no room in the window, and never waits.
        """
        of_each = self.of_each
        for lane in self._lanes[partition * of_each : (partition + 1) * of_each]:
            self._put(lane, submission)

    def _put(self, lane: _Lane, submission: Submission) -> None:
        lane.waiting.append(submission)
        self._window.take(submission.weight)
        if not lane.busy:
            if lane.alone:
                lane.busy = True
                self._send(lane, self._next(lane))
            else:
                self._make_ready(lane)

    def _make_ready(self, lane: _Lane) -> None:
        if self._ended:
            self._fail_waiting(lane)
            return
        lane.busy = True
        self._ready.append(lane)
        if self._came:
            self._came.unpark()

    async def run(self) -> None:
        """Send what gathered in a pass of the loop, until cancelled; then fail what waits."""
        try:
            while True:
                while not self._ready:  # No deadline: nobody publishes.
                    await self._came.park()
                ready, self._ready = self._ready, []
                for lane in ready:
                    self._send(lane, self._next(lane))
        finally:
            self._ended = True
            for lane in self._ready:
                lane.busy = False
            for lane in self._lanes:
                self._fail_waiting(lane)

    def _fail_waiting(self, lane: _Lane) -> None:
        waiting, lane.waiting = list(lane.waiting), deque()
        self._fail(waiting, BrokerError("the broker has ended"))

    @staticmethod
    def _next(lane: _Lane) -> list[Submission]:
        waiting, size = lane.waiting, 0
        taken: list[Submission] = []
        while waiting and len(taken) < MANY and (size < _BYTES or not taken):
            taken.append(waiting.popleft())
            size += taken[-1].weight
        return taken

    def _send(self, lane: _Lane, batch: list[Submission]) -> None:
        keys: list[bytes] = []
        # Streams that begin in one script share an epoch: event ids have each only once.
        arguments: list[Part] = [self._verb, self._new_epoch()]
        kept = None
        for one in batch:
            keys += one.keys
            if one.kept is not None and one.kept != kept:
                kept = one.kept
                arguments += (b"o", *kept)
            arguments += one.instructions
        self.scripts += 1
        lane.alone = len(batch) == 1
        ask = partial(self._ask, lane.partition)
        try:
            PUBLISH.ask(ask, keys, arguments, partial(self._answered, lane, batch))
        except Lost as error:
            self._answered(lane, batch, error, sent=False)

    def _answered(
        self, lane: _Lane, batch: list[Submission], answer: object, *, sent: bool = True
    ) -> None:
        if type(answer) is list and len(answer) == len(batch):
            for submission, one in zip(batch, answer, strict=True):
                submission.tell(self._outcome(one))
            self._window.give_back(sum([one.weight for one in batch]), len(batch))
        else:
            self._fail(batch, _failure(answer, sent=sent))
        lane.busy = False
        if lane.waiting:
            self._make_ready(lane)

    def _fail(self, batch: list[Submission], error: BrokerError) -> None:
        for submission in batch:
            submission.tell(error)
        self._window.give_back(sum([one.weight for one in batch]), len(batch))

    def _outcome(self, answer: object) -> StreamPosition | BrokerError | None:
        if answer == b"":
            return None
        if type(answer) is not bytes:
            return _failure(answer)
        if answer.startswith(b"!"):
            return _row_failure(answer)
        offset, _, rest = answer.partition(b" ")
        epoch, foreign, _ = rest.partition(b" ")
        if foreign:
            self.foreign += 1
            self._warnings.warn(
                "keys were not ours, and their streams have begun anew", count=self.foreign
            )
        return StreamPosition(int(offset), epoch.decode())


def _row_failure(answer: bytes) -> BrokerError:
    """Why a row was not published: another term leads, or the row before it is not published."""
    term = answer[1:]
    return DeposedError(int(term)) if term else AfterError()


def _failure(answer: object, *, sent: bool = True) -> BrokerError:
    if isinstance(answer, Lost):
        why = str(answer)
        return BrokerError(f"{why}; it may have been published" if sent else why)
    if isinstance(answer, Refused):
        return BrokerError(f"the engine refuses: {str(answer)[:_SHOWN]}")
    return BrokerError("the engine's answer cannot be read; it may have been published")
