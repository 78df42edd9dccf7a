"""Answers of an engine that come later: a receipt is given out at once, and settled when they come.

A call on an engine is carried out in its turn and never waits. Its answer is an `Answer`: the value
itself where the engine knows it at once, as one in this process's memory does, else a `Receipt`. So
many calls can be under way before the first answer is awaited, and an engine that waits for a disk
or a network costs one wait for all of them. An engine without waits makes no receipt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar, Union

import trio

from repeater.errors import BrokerError, ReplyError

T = TypeVar("T")

_NOTHING: Final = object()


class Receipt(Generic[T]):
    """One answer that is not there yet. Made and settled by an engine; awaited by its caller.

    The engine settles every receipt: with the answer, with a `ReplyError` for a refusal, or with a
    `BrokerError`, at the latest when its connection or the engine itself ends.
    """

    __slots__ = ("_answer", "_told", "_waiting")

    def __init__(self) -> None:
        self._answer: object = _NOTHING
        self._told: Callable[[T | ReplyError | BrokerError], object] | None = None
        # The tasks that wait, and until when. Not an event and a cancel scope for each: they cost
        # as much as numbering and keeping the event whose answer is awaited.
        self._waiting: dict[trio.lowlevel.Task, float] | None = None

    @property
    def settled(self) -> bool:
        """Whether the answer is there: then `wait` returns or raises at once."""
        return self._answer is not _NOTHING

    @property
    def succeeded(self) -> bool:
        """Whether the answer is there and is no failure."""
        answer = self._answer
        return answer is not _NOTHING and not isinstance(answer, (ReplyError, BrokerError))

    def settle(self, answer: T | ReplyError | BrokerError) -> None:
        """Give the answer, once. Called by the engine; never waits."""
        assert self._answer is _NOTHING
        self._answer = answer
        if self._waiting:
            for task in self._waiting:
                trio.lowlevel.reschedule(task)
            self._waiting = None
        if self._told is not None:
            told, self._told = self._told, None
            told(answer)

    def when_settled(self, tell: Callable[[T | ReplyError | BrokerError], object]) -> None:
        """Have `tell` called with the answer by `settle`; at once if the answer is there.

        For code that hands on very many answers without a task for each. At most one `tell` is
        given to a receipt. It never waits and never fails.
        """
        assert self._told is None
        if self._answer is _NOTHING:
            self._told = tell
        else:
            tell(self._answer)  # type: ignore[arg-type]  # `settle` took a T

    async def wait(self) -> T:
        """Wait for the answer and return it; a checkpoint only when it waits.

        The caller sets the deadline. Cancelled, nothing is known: what was asked for may happen.

        Raises:
            ReplyError: the engine refused.
            BrokerError: the engine failed; what was asked for may have happened or not.
        """
        if self._answer is _NOTHING:
            await trio.lowlevel.wait_task_rescheduled(self.park(math.inf))
        return self.result()

    def result(self) -> T:
        """The answer that is there; raises as `wait`.

        Raises:
            trio.TooSlowError: there is no answer yet. What was asked for may happen.
        """
        answer = self._answer
        if answer is _NOTHING:
            raise trio.TooSlowError
        if isinstance(answer, (ReplyError, BrokerError)):
            raise answer
        return answer  # type: ignore[return-value]  # `settle` took a T

    def park(self, deadline: float) -> Callable[[trio.lowlevel.RaiseCancelT], trio.lowlevel.Abort]:
        """Have this task rescheduled when the answer comes, or by `end_waits` at the deadline.

        For `wait_task_rescheduled`, which gets what is returned: the way out of the wait.
        """
        task = trio.lowlevel.current_task()
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = {}
        waiting[task] = deadline

        def leave(_raise_cancel: object) -> trio.lowlevel.Abort:
            del waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        return leave

    def end_waits(self, now: float) -> None:
        """End the waits whose deadline has passed; the receipt itself stays open."""
        waiting = self._waiting or {}
        for task in [task for task, deadline in waiting.items() if deadline <= now]:
            del waiting[task]
            trio.lowlevel.reschedule(task)


Answer: TypeAlias = Union[T, Receipt[T]]  # noqa: UP007  # `|` would be a value here, not a type
"""What a call on an engine returns: the value, or a receipt for the value."""


async def settled(answer: Answer[T]) -> T:
    """The value of an answer, at once or after a wait; see `Receipt.wait`."""
    return await answer.wait() if isinstance(answer, Receipt) else answer
