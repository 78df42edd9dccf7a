"""The metrics of a server with workers: one scrape of any worker gives all of them.

A series of a worker has the label `worker`, its number. Counters, and the parts of histograms, go
on when a worker is restarted; gauges are those of the workers that answer. What a server has only
once has no such label. The supervisor's own process has `worker="supervisor"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.clients.questions import encoded
from repeater.supervision.totals import Totals
from repeater.web.metrics import ONCE, ONCE_ALWAYS
from repeater.web.samples import Family, Sample

if TYPE_CHECKING:
    from repeater.brokers.control import Member, MemberAnswer
    from repeater.supervision.questions import ServerQuestions
    from repeater.supervision.users import Users

_Series = tuple[str, str, tuple[tuple[str, str], ...]]
"""The names of family and sample, and the labels."""

UP: Final = "repeater_worker_up"
_ADDED: Final = ("counter", "histogram")
# While a worker drains, its successor may have the same number. Their gauges are added, but these.
_LARGEST: Final = (
    *("process_start_time_seconds", "process_max_fds", "python_info"),
    *("repeater_loop_lag_seconds", "repeater_draining"),
)


class Metrics:
    """Answers `metrics`. Lives inside the supervisor; needs no end."""

    def __init__(
        self,
        questions: ServerQuestions,
        users: Users,
        own: Callable[[], Sequence[Family]],
        workers: Callable[[], Iterable[int]],
        *,
        apart: bool = False,
    ) -> None:
        """Take what only the supervisor knows.

        Args:
            questions: The questions of its workers, and to them.
            users: Counts the users of all workers.
            own: Reads the metrics of the supervisor's process.
            workers: Gives the numbers of the workers that are to run.
            apart: Whether each worker has a broker and users of its own: then nearly nothing is
                there once, and the supervisor knows no users or channels.
        """
        self._apart = apart
        self._once = ONCE_ALWAYS if apart else ONCE
        self._questions = questions
        self._users = users
        self._own = own
        self._workers = workers
        self._counters: Totals[_Series, float] = Totals()
        self._shapes: dict[str, tuple[str, str]] = {}
        questions.register("metrics", self._answer)
        questions.hear("metrics", self._hear)
        questions.at_end(self._counters.forget)

    def _hear(self, worker: Member, body: bytes) -> None:
        """Take the last metrics of a worker that ends in order."""
        self._see(worker, msgspec.msgpack.decode(body, type=list[Family]))

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        answers = await self._questions.ask_each("metrics")
        return encoded(self._merged(list(_given(answers))))

    def _merged(self, given: Sequence[tuple[Member, list[Family]]]) -> list[Family]:
        once: dict[_Series, float] = {}
        gauges: dict[tuple[int, _Series], float] = {}
        for worker, families in given:
            self._see(worker, families)
            for family in families:
                for series, value in _series(family):
                    if family.name.startswith(self._once):
                        once[series] = max(value, once.get(series, value))
                    elif family.kind not in _ADDED:
                        key = worker.worker, series
                        gauges[key] = _both(series, gauges.get(key), value)
        found: dict[str, list[Sample]] = {name: [] for name in self._shapes}
        for series, value in once.items():
            _put(found, series, value, {})
        for (number, series), value in gauges.items():
            _put(found, series, value, {"worker": str(number)})
        for number, kept in sorted(self._counters.by_worker().items()):
            for series, value in kept.items():
                _put(found, series, value, {"worker": str(number)})
        self._add_own(found, {worker.worker for worker, _families in given})
        return [Family(name, *self._shapes[name], samples) for name, samples in found.items()]

    def _see(self, worker: Member, families: Sequence[Family]) -> None:
        """Take what a worker has counted, and which metrics there are."""
        counters: dict[_Series, float] = {}
        for family in families:
            self._shapes[family.name] = family.text, family.kind
            if family.kind in _ADDED and not family.name.startswith(self._once):
                counters.update(_series(family))
        self._counters.see(worker, counters)

    def _add_own(self, found: dict[str, list[Sample]], answered: set[int]) -> None:
        """Add what only the supervisor knows, and the metrics of its own process."""
        if not self._apart:
            users, channels = len(self._users.connections), self._questions.count_channels()
            for name, count in (("repeater_users", users), ("repeater_channels", channels)):
                found[name] = [Sample(name, {}, float(count))]
        self._shapes[UP] = "1 while the worker answers.", "gauge"
        found[UP] = [
            Sample(UP, {"worker": str(number)}, float(number in answered))
            for number in sorted(answered.union(self._workers()))
        ]
        for family in self._own():
            self._shapes[family.name] = family.text, family.kind
            found.setdefault(family.name, [])
            for series, value in _series(family):
                _put(found, series, value, {"worker": "supervisor"})


def _given(answers: Iterable[MemberAnswer]) -> Iterator[tuple[Member, list[Family]]]:
    """The metrics of the workers that answered; the others have none now but their counters."""
    for one in answers:
        if isinstance(one.answer, bytes):
            yield one.member, msgspec.msgpack.decode(one.answer, type=list[Family])


def _series(family: Family) -> Iterator[tuple[_Series, float]]:
    for sample in family.samples:
        yield (family.name, sample.name, tuple(sample.labels.items())), sample.value


def _both(series: _Series, earlier: float | None, value: float) -> float:
    if earlier is None:
        return value
    return max(earlier, value) if series[0] in _LARGEST else earlier + value


def _put(
    found: dict[str, list[Sample]], series: _Series, value: float, more: dict[str, str]
) -> None:
    family, name, labels = series
    found[family].append(Sample(name, {**dict(labels), **more}, value))
