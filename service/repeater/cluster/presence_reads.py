"""Members and counts of channels, read from the engine: first the nodes, then what each has.

Reading many members costs the engine and this process milliseconds. So of one channel at most one
read is under way, and all who ask meanwhile share the next one: it begins after they have asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

import trio

from repeater.cluster.foreign import Foreign
from repeater.cluster.presence_names import Names, read_rows
from repeater.errors import BrokerError
from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.script import packaged_script

if TYPE_CHECKING:
    from repeater.brokers.receipts import Receipt
    from repeater.publication import ClientInfo
    from repeater.valkey.pipe import Tell
    from repeater.valkey.servers import Servers

T = TypeVar("T")

_NODES: Final = 1_000  # most nodes that are asked for
_AT_ONCE: Final = 500  # rows that are read without a pause: about 1 ms

PRESENT: Final = packaged_script(__package__, "present")
USERS: Final = packaged_script(__package__, "users")


Members: TypeAlias = Mapping[str, "ClientInfo"]
Count = tuple[int, int]
TellMembers: TypeAlias = Callable[["Members | BrokerError"], None]
TellCount: TypeAlias = Callable[[Count | BrokerError], None]


class _Large(NamedTuple):
    """The rows of several nodes, and who gets the members."""

    names: Names
    answers: Sequence[Mapping[bytes, bytes]]
    tell: TellMembers


class Reads:
    """Lives inside `ClusterPresence`, which runs `run`."""

    def __init__(self, servers: Servers) -> None:
        """Read from these servers."""
        self._servers = servers
        self._members: dict[bytes, list[Receipt[Members]]] = {}
        self._counts: dict[bytes, list[Receipt[Count]]] = {}
        # Answers with many rows, and what takes the members.
        self._large: deque[_Large] = deque()
        self._came = trio.Event()
        self._foreign = Foreign()

    @property
    def foreign(self) -> int:
        """How many rows and keys were read that no node had written."""
        return self._foreign.count

    def members(self, names: Names, receipt: Receipt[Members]) -> None:
        """Settle a receipt with the members of a channel. Never waits."""
        self._share(self._members, self._read_members, names, receipt)

    def count(self, names: Names, receipt: Receipt[Count]) -> None:
        """Settle a receipt with the numbers of clients and users in a channel. Never waits."""
        self._share(self._counts, self._read_count, names, receipt)

    async def run(self) -> None:
        """Read long answers, until cancelled."""
        try:
            while True:
                await self._came.wait()  # No deadline: there may be no long answer for days.
                self._came = trio.Event()
                while self._large:
                    names, answers, _ = self._large[0]
                    members = await self._rows(names, answers)
                    self._large.popleft().tell(members)
        finally:
            while self._large:
                self._large.popleft().tell(BrokerError("presence has ended"))

    def _share(
        self,
        waiting: dict[bytes, list[Receipt[T]]],
        read: Callable[[Names, Callable[[T | BrokerError], None]], None],
        names: Names,
        receipt: Receipt[T],
    ) -> None:
        """Have a receipt settled by a read that begins from now on."""
        shared = waiting.get(names.nodes)
        if shared is not None:  # One is under way; this is for the next one.
            shared.append(receipt)
            return

        def begin(receipts: list[Receipt[T]]) -> None:
            waiting[names.nodes] = []
            read(names, partial(end, receipts))

        def end(receipts: list[Receipt[T]], answer: T | BrokerError) -> None:
            later = waiting.pop(names.nodes)
            if later:
                begin(later)
            for one in receipts:
                one.settle(answer)

        begin([receipt])

    def _read_members(self, names: Names, tell: TellMembers) -> None:
        def found(nodes: Sequence[bytes]) -> None:
            asks = [
                partial(self._ask, names, packed(b"HGETALL", names.infos(node))) for node in nodes
            ]
            _Answers(asks, came, tell)

        def came(answers: Sequence[object]) -> None:
            maps = [one for one in answers if isinstance(one, dict)]
            self._note_foreign(len(answers) - len(maps))
            if sum(map(len, maps)) > _AT_ONCE:
                self._large.append(_Large(names, maps, tell))
                self._came.set()
                return
            members: dict[str, ClientInfo] = {}
            self._note_foreign(sum(read_rows(one, members) for one in maps))
            tell(members)

        self._find_nodes(names, found, tell)

    async def _rows(self, names: Names, answers: Sequence[Mapping[bytes, bytes]]) -> Members:
        members: dict[str, ClientInfo] = {}
        foreign = 0
        for rows in answers:
            left = iter(rows.items())
            while part := dict(islice(left, _AT_ONCE)):
                foreign += read_rows(part, members)
                await trio.lowlevel.checkpoint()
        self._note_foreign(foreign)
        return members

    def _read_count(self, names: Names, tell: TellCount) -> None:
        def found(nodes: Sequence[bytes]) -> None:
            if not nodes:
                tell((0, 0))
                return
            commands = [packed(b"HLEN", names.infos(node)) for node in nodes]
            asks: list[Callable[[Tell], None]]
            asks = [partial(self._ask, names, one) for one in commands]
            users = [names.users(node) for node in nodes]
            if len(users) == 1:
                asks.append(partial(self._ask, names, packed(b"SCARD", *users)))
            else:
                ask = partial(self._servers.ask, names.partition)
                asks.append(partial(USERS.ask, ask, users, ()))
            _Answers(asks, came, tell)

        def came(answers: Sequence[object]) -> None:
            numbers = [one if isinstance(one, int) else 0 for one in answers]
            *clients, users = numbers
            # One field of each node is the number of the last change.
            tell((sum(clients) - sum(map(bool, clients)), users))

        self._find_nodes(names, found, tell)

    def _find_nodes(
        self,
        names: Names,
        found: Callable[[Sequence[bytes]], None],
        tell: Callable[[BrokerError], None],
    ) -> None:
        """Find the nodes with clients in a channel; without one the answer is known."""

        def came(answer: object) -> None:
            if isinstance(answer, list):
                found(answer)
            else:
                tell(BrokerError(f"the engine: {answer}"))

        try:
            ask = partial(self._servers.ask, names.partition)
            PRESENT.ask(ask, (names.nodes,), (_NODES,), came)
        except Lost as error:
            tell(BrokerError(f"the engine: {error}"))

    def _ask(self, names: Names, command: bytes, tell: Tell) -> None:
        self._servers.ask(names.partition, command, tell)

    def _note_foreign(self, rows: int) -> None:
        self._foreign.note_rows("presence", rows)


class _Answers:
    """Several requests in a row, until all are answered."""

    def __init__(
        self,
        asks: Sequence[Callable[[Tell], None]],
        came: Callable[[Sequence[object]], None],
        failed: Callable[[BrokerError], None],
    ) -> None:
        """Make the requests; then `came` gets the answers, or `failed` a `BrokerError`.

        A key of another type is an answer: a `Refused`.
        """
        self._answers: list[object] = [None] * len(asks)
        self._open = len(asks)
        self._error: Exception | None = None
        self._came = came
        self._failed = failed
        for number, ask in enumerate(asks):
            try:
                ask(partial(self._take, number))
            except Lost as error:
                self._take(number, error)
        if not asks:
            came(())

    def _take(self, number: int, answer: object) -> None:
        self._open -= 1
        self._answers[number] = answer
        if isinstance(answer, Exception) and not _is_foreign(answer):
            self._error = answer
        if self._open:
            return
        if self._error is not None:
            self._failed(BrokerError(f"the engine: {self._error}"))
        else:
            self._came(self._answers)


def _is_foreign(answer: Exception) -> bool:
    return isinstance(answer, Refused) and answer.code == "WRONGTYPE"
