"""The rows of other databases that the engine remembers: which they are, and forgetting them.

They are remembered by the script that publishes them (publish.lua): each partition has those of its
channels, and the highest term that it has seen. So whoever asks for the rows of a source asks all
partitions.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.lanes import Lanes, Submission
from repeater.errors import BrokerError
from repeater.valkey.pipe import Lost, Refused, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from repeater.brokers.valkey.streams import StreamEngine
    from repeater.valkey.pipe import Part
    from repeater.valkey.servers import Servers

_TERM: Final = b""
"""The field of the term, among those of the rows: no row has an empty name."""


class Rows:
    """The rows in one engine. Lives inside a broker, and has no task of its own."""

    def __init__(self, servers: Servers, engine: StreamEngine, lanes: Lanes) -> None:
        self._servers = servers
        self._engine = engine
        self._lanes = lanes

    def forget(self, source: str, names: Sequence[str]) -> Receipt[None]:
        """Forget rows, behind all that was submitted before. Without names: wait for that alone.

        Which channel a row was in is not known any more, so each lane forgets all of them: then a
        row that is still under way in a lane is forgotten by the same lane, behind it.

        Raises:
            BrokerError: the engine, or a part of it, is known to be down; nothing was forgotten.
        """
        self._check()
        receipt: Receipt[None] = Receipt()
        lanes = self._lanes
        answers = _Answers(self._servers.partitions * lanes.of_each, receipt, _nothing)
        instructions: tuple[Part, ...] = (b"f", len(names), *names)
        weight = sum(map(len, names))
        for partition in range(self._servers.partitions):
            key = self._engine.rows_key(partition, source)
            lanes.put_in_all(partition, Submission((key,), instructions, None, weight, answers.add))
        return receipt

    def known(self, source: str) -> Receipt[Sequence[str]]:
        """The rows that are remembered in all partitions, what was submitted before included.

        Raises:
            BrokerError: the engine, or a part of it, is known to be down.
        """
        receipt: Receipt[Sequence[str]] = Receipt()
        self.forget(source, ()).when_settled(partial(self._read, source, receipt))
        return receipt

    def _check(self) -> None:
        for partition in range(self._servers.partitions):
            why = self._servers.why(partition)
            if why:
                raise BrokerError(why)

    def _read(self, source: str, receipt: Receipt[Sequence[str]], outcome: object) -> None:
        """Read what is there, now that all that was submitted before is answered."""
        if isinstance(outcome, BrokerError):
            receipt.settle(outcome)
            return
        answers = _Answers(self._servers.partitions, receipt, _names)
        for partition in range(self._servers.partitions):
            command = packed("HGETALL", self._engine.rows_key(partition, source))
            try:
                self._servers.ask(partition, command, answers.add)
            except Lost as error:
                answers.add(error)


class _Answers:
    """Gathers the answers of all partitions, or of all lanes, for one receipt."""

    def __init__(
        self, wanted: int, receipt: Receipt[Any], result: Callable[[list[object]], object]
    ) -> None:
        """Settle the receipt with `result` of so many answers, or with a failure among them."""
        self._wanted = wanted
        self._receipt = receipt
        self._result = result
        self._answers: list[object] = []

    def add(self, answer: object) -> None:
        """Take one answer; the last one settles the receipt."""
        self._answers.append(answer)
        if len(self._answers) == self._wanted:
            self._receipt.settle(self._failure() or self._result(self._answers))

    def _failure(self) -> BrokerError | None:
        for answer in self._answers:
            if isinstance(answer, BrokerError):
                return answer
            if isinstance(answer, Exception) and not _is_foreign(answer):
                return BrokerError(f"the engine does not say its rows: {str(answer)[:100]}")
        return None


def _is_foreign(error: Exception) -> bool:
    """Whether the key is not ours: then it has no rows, and the next row makes it ours."""
    return isinstance(error, Refused) and str(error).startswith("WRONGTYPE")


def _nothing(_answers: list[object]) -> None:
    """What all answers to a removal mean together."""


def _names(answers: list[object]) -> list[str]:
    """The names of rows in the hashes of all partitions."""
    found: dict[str, None] = {}
    for answer in answers:
        fields = answer if isinstance(answer, dict) else answer[::2] if type(answer) is list else ()
        for field in fields:
            if type(field) is bytes and field != _TERM:
                found[field.decode(errors="replace")] = None
    return list(found)
