"""The questions and the news that a supervisor gets from its workers: a table of methods.

The link between supervisor and workers carries them; the modules beside this one take part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from repeater.brokers.control import DEADLINE, Question
from repeater.clients.questions import all_of, guarded
from repeater.errors import BrokerError

if TYPE_CHECKING:
    from repeater.brokers.control import Member, MemberAnswer, SupervisorControl
    from repeater.clients.questions import Answerer
    from repeater.failures import Failures

_MEMBERS_DEADLINE: Final = 0.6 * DEADLINE
"""Seconds for the workers' answers: who asked the supervisor waits for `DEADLINE` in all."""

Listener = Callable[["Member", bytes], None]
"""Takes what a worker tells: its sender, and its body."""


class ServerQuestions:
    """Implements `Supervision`. Lives inside the supervisor; needs no end."""

    def __init__(self, failures: Failures) -> None:
        """Take where errors of our own are noted."""
        self._control: SupervisorControl | None = None
        self.count_channels: Callable[[], int] = lambda: 0
        """The number of channels that workers hold."""
        self.count_publications: Callable[[], int] = lambda: 0
        """The number of publications since the start."""
        self._failures = failures
        self._answerers: dict[str, Answerer] = {}
        self._listeners: dict[str, Listener] = {}
        self._ends: list[Callable[[Member], None]] = []

    def begin(
        self,
        control: SupervisorControl,
        count_channels: Callable[[], int],
        count_publications: Callable[[], int],
    ) -> None:
        """Take what the supervisor knows of all workers. Called once, before the first worker.

        Args:
            control: The way to the workers.
            count_channels: Counts the channels that they hold.
            count_publications: Counts the publications since the start, each once. The workers
                themselves count those of the channels that they hold.
        """
        self._control = control
        self.count_channels, self.count_publications = count_channels, count_publications

    @property
    def control(self) -> SupervisorControl:
        """The way to the workers."""
        assert self._control is not None, "a supervisor begins before its workers"
        return self._control

    def register(self, method: str, answerer: Answerer) -> None:
        """Have a method carried out for workers."""
        self._answerers[method] = answerer

    def hear(self, method: str, listener: Listener) -> None:
        """Have news of this method heard."""
        self._listeners[method] = listener

    def at_end(self, forget: Callable[[Member], None]) -> None:
        """Have a function called when a worker has ended, behind all that the worker told."""
        self._ends.append(forget)

    async def ask_members(self, method: str) -> list[tuple[Member, bytes]]:
        """Ask all workers the same, and return their answers.

        Raises:
            ReplyError: one refused.
            BrokerError: one failed, or did not answer in time. The log says which.
        """
        answers = await self.ask_each(method)
        given = all_of(method, answers)
        return list(zip((one.member for one in answers), given, strict=True))

    async def ask_each(self, method: str, body: bytes = b"") -> Sequence[MemberAnswer]:
        """Ask all workers the same, and return what each answered, errors included."""
        question = Question(method, body)
        return await self.control.ask_members(question, timeout=_MEMBERS_DEADLINE)

    async def carry_out(self, asker: Member, question: Question) -> bytes:
        """Answer a question; as `Supervision.carry_out`."""
        answerer = self._answerers.get(question.method)
        if answerer is None:
            raise BrokerError("unknown method")
        return await guarded(answerer(asker, question.body), self._failures, "supervisor")

    def told(self, teller: Member, question: Question) -> None:
        """Take news; as `Supervision.told`. What nobody hears is dropped."""
        listener = self._listeners.get(question.method)
        if listener is not None:
            listener(teller, question.body)

    def left(self, member: Member) -> None:
        """Forget a worker; as `Supervision.left`."""
        for forget in self._ends:
            forget(member)
