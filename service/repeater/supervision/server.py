"""A supervisor's side of the control plane, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from repeater.failures import Failures
from repeater.supervision.counters import CounterTotals
from repeater.supervision.metrics import Metrics
from repeater.supervision.places import Places
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.summary import Summaries
from repeater.supervision.users import Users
from repeater.web.metrics import create_process_registry
from repeater.web.samples import Family, families_of


def make_supervision(
    workers: Callable[[], Iterable[int]], *, apart: bool = False
) -> ServerQuestions:
    """Make what answers the workers' questions to their server; call its `begin` next.

    Args:
        workers: Gives the numbers of the workers that are to run.
        apart: Whether each has a broker and users of its own.
    """
    questions = ServerQuestions(Failures())
    users = Users(questions)
    Places(questions, users, workers)
    Summaries(questions, users)
    CounterTotals(questions)
    registry = create_process_registry()

    def own() -> Sequence[Family]:
        return families_of(registry)

    Metrics(questions, users, own, workers, apart=apart)
    return questions
