"""What one node has in one channel's presence, and what of it the engine has not got yet. Pure.

The node's own list is the truth, and the engine has a copy. Changes are numbered, and one script
with changes is under way at a time. The engine takes a change only if the one before it is the last
that it has; else it has lost something, and gets everything anew. So whatever a failover, an
eviction or a lost answer has done, the copy is right again with the next change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from repeater.brokers.receipts import Receipt
from repeater.cluster.presence_names import Names, row_of
from repeater.errors import BrokerError
from repeater.valkey.pipe import Refused

if TYPE_CHECKING:
    from repeater.publication import ClientInfo
    from repeater.valkey.pipe import Part

T = TypeVar("T")

CHANGES: Final = 500
"""Most clients in one script: about 1 ms of the engine."""

_TRIES: Final = 3  # to bring everything into the engine, before an error is told


class Batch(msgspec.Struct):
    """Changes that go in one script. Values, made by `Entries.take`."""

    arguments: list[Part]
    """Without the node and the time to live."""
    number: int
    sizes: tuple[int, int] | None
    """The numbers of clients and users after it; None while more is to come."""
    clients: dict[str, list[Receipt[None]]]
    """The clients, and who waits for their changes."""
    users: list[str]
    """Users who have come or gone."""
    then: list[Callable[[], None]]
    """What waits until all that was asked before it is carried out."""


class Entries:
    """Lives inside `ClusterPresence` while the node has clients in the channel."""

    def __init__(self, names: Names) -> None:
        """Know nobody yet, under these names of the engine."""
        self.names = names
        self._batch: Batch | None = None  # under way
        self.renewed = -math.inf
        """The Trio time of the last answer."""
        self._infos: dict[str, ClientInfo] = {}
        self._users: dict[str, int] = {}  # connections of each
        self._changed: dict[str, list[Receipt[None]]] = {}
        self._touched: dict[str, None] = {}  # users who have come or gone
        self._then: list[Callable[[], None]] = []
        self._number = 0  # of the last change that the engine has; 0: it has to begin anew
        self._tries = 0
        # Whether the engine may have something else, also if nobody is there any more.
        self._in_doubt = False

    def __len__(self) -> int:
        """The number of clients."""
        return len(self._infos)

    def __contains__(self, client: str) -> bool:
        return client in self._infos

    @property
    def under_way(self) -> bool:
        """Whether a script has not been answered."""
        return self._batch is not None

    @property
    def waits(self) -> bool:
        """Whether something waits for the next script."""
        return bool(self._changed or self._touched or self._in_doubt)

    @property
    def is_over(self) -> bool:
        """Whether nobody is there, and the engine knows."""
        return not (self._infos or self.under_way or self.waits or self._then)

    def add(self, info: ClientInfo) -> Receipt[None]:
        """Note a client's info."""
        before = self._infos.get(info.client)
        self._infos[info.client] = info
        self._count(info.user, 1)
        if before is not None:
            self._count(before.user, -1)
        return self._change(info.client)

    def remove(self, client: str) -> Receipt[None] | None:
        """Note that a client has left; None if it was not there."""
        info = self._infos.pop(client, None)
        if info is None:
            return None
        self._count(info.user, -1)
        return self._change(client)

    def _count(self, user: str, step: int) -> None:
        count = self._users.get(user, 0) + step
        if count:
            self._users[user] = count
        else:
            del self._users[user]
        if count == (step > 0):  # The first has come, or the last has gone.
            self._touched[user] = None

    def _change(self, client: str) -> Receipt[None]:
        receipt: Receipt[None] = Receipt()
        self._changed.setdefault(client, []).append(receipt)
        return receipt

    def after_changes(self, do: Callable[[], None]) -> None:
        """Have `do` called when all changes that were noted are carried out, or have failed.

        What waits without a script under way has failed, or is kept until the engine is back.
        """
        if self._batch is None:
            do()
        elif self.waits:
            self._then.append(do)
        else:
            self._batch.then.append(do)

    def after_next(self, do: Callable[[], None]) -> None:
        """Have `do` called as `after_changes`, behind the next script at least."""
        self._then.append(do)

    def begin_anew(self) -> None:
        """Note that the engine may have lost something: it gets everything with the next script."""
        self._number = 0
        self._in_doubt = True
        for client in self._infos:
            self._changed.setdefault(client, [])
        self._touched.update(dict.fromkeys(self._users))

    def take(self, number: int) -> Batch:
        """The next script: changes that wait, or none, which keeps alive what is there.

        Nothing is under way. `number` is larger than that of any script before, of this process.
        """
        before, self._in_doubt = self._number, False
        clients = _first(self._changed, CHANGES)
        users = list(_first(self._touched, 2 * CHANGES))
        there = [one for client in clients if (one := self._infos.get(client)) is not None]
        gone = [client for client in clients if client not in self._infos]
        present = [user for user in users if user in self._users]
        absent = [user for user in users if user not in self._users]
        arguments: list[Part] = [before or "", number, len(there)]
        for info in there:
            arguments += (info.client, row_of(info))
        arguments += (len(gone), *gone, len(present), *present, *absent)
        whole = not self.waits
        then, self._then = (self._then, []) if whole else ([], self._then)
        sizes = (len(self._infos), len(self._users)) if whole else None
        self._batch = Batch(arguments, number, sizes, clients, users, then)
        return self._batch

    def answered(self, batch: Batch, answer: object, now: float) -> list[Callable[[], None]]:
        """Take the answer to a script: its sizes, 0, or an error of connection or server.

        Returns what waited for it. After an error nobody waits any more, and the changes go with
        the next script. An error of the server says that nothing has happened.
        """
        self._batch = None
        if isinstance(answer, list) and batch.sizes in (None, tuple(answer)):
            self._number, self.renewed = batch.number if answer[0] else 0, now
            if batch.sizes is not None:
                self._tries = 0
            _settle(batch.clients, None)
            return batch.then
        self._tries += 1
        if isinstance(answer, Exception):
            error = BrokerError(f"the engine: {answer}")
        elif self._tries > _TRIES:
            error = BrokerError("the engine does not keep presence")
        else:
            for client, receipts in batch.clients.items():
                self._changed[client] = receipts + self._changed.get(client, [])
            self._then = batch.then + self._then
            self.begin_anew()
            return []
        self._tries = 0
        if isinstance(answer, Refused):
            self._in_doubt = not self._number  # It was to begin anew, and has not.
            for client in batch.clients:
                self._changed.setdefault(client, [])
            self._touched.update(dict.fromkeys(batch.users))
        else:
            self.begin_anew()
        _settle(batch.clients, error)
        return batch.then + self.fail(error)

    def fail(self, error: BrokerError) -> list[Callable[[], None]]:
        """Tell all who wait that their changes have failed; returns what waits for the changes."""
        waiting, self._changed = self._changed, {client: [] for client in self._changed}
        then, self._then = self._then, []
        _settle(waiting, error)
        return then


def _first(of: dict[str, T], most: int) -> dict[str, T]:
    """Take out the first ones."""
    if len(of) <= most:
        taken = dict(of)
        of.clear()
        return taken
    return {key: of.pop(key) for key in list(islice(of, most))}


def _settle(clients: dict[str, list[Receipt[None]]], answer: BrokerError | None) -> None:
    for receipts in clients.values():
        for receipt in receipts:
            receipt.settle(answer)
