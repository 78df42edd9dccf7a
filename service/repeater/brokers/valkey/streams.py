"""The streams in the engine: how they are subscribed to, read and forked."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.engine import ENTRIES, ForeignError
from repeater.brokers.valkey.envelope import entry_of, head_of
from repeater.brokers.valkey.keys import Keys, Names
from repeater.brokers.valkey.reads import Reads
from repeater.brokers.valkey.scripts import FORK, HISTORY, RENEW, NewEpoch, new_epoch
from repeater.brokers.valkey.values import Place, Read
from repeater.brokers.valkey.warning_limit import WarningLimit
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import Publication, StreamPosition
from repeater.valkey.pipe import Lost, Refused, ignore, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from repeater.brokers.contract import Page
    from repeater.brokers.valkey.engine import Take
    from repeater.brokers.valkey.values import Message
    from repeater.valkey.pipe import Part, Tell
    from repeater.valkey.servers import Servers

_log = get_logger("engine")

_UNBORN: Final = 300_000  # milliseconds for which the epoch of a channel without a stream is kept
_BYTES: Final = 262_144  # of the entries of one read of a follower's, about
_NAMES: Final = 32_768  # channels whose names are remembered: about 0.5 KiB each
_MOST: Final = 2**53  # offsets are below; clients may ask for any number
_ALL: Final = -1
_EMPTY: Final = ""
_PING: Final = packed("PING")


class Located(NamedTuple):
    """Where a channel is in the engine."""

    partition: int
    names: Names


class StreamEngine:
    """Implements `Engine` on `Servers`, and reads pages. Lives inside the broker."""

    def __init__(self, servers: Servers, prefix: str, epochs: NewEpoch = new_epoch) -> None:
        self._servers = servers
        self._new_epoch = epochs
        self._keys = [Keys(prefix, servers.tag(number)) for number in range(servers.partitions)]
        self.reads = Reads(servers.partitions)
        self.locate = lru_cache(_NAMES)(self._locate)
        """Where a channel is."""
        self._warnings = WarningLimit(_log)
        self.foreign = 0
        """Entries of streams that were not ours, and were left out of pages."""

    def _locate(self, channel: str) -> Located:
        partition = self._servers.partition_of(channel)
        return Located(partition, self._keys[partition].names(channel))

    def result_key(self, located: Located, key: str) -> bytes:
        """The key of the result of an idempotency key."""
        return self._keys[located.partition].result(located.names, key)

    def rows_key(self, partition: int, source: str) -> bytes:
        """The key of the rows of a source that a partition remembers."""
        return self._keys[partition].rows(source)

    def partition_of(self, channel: str) -> int:
        """See `Engine`."""
        return self.locate(channel).partition

    def why(self, partition: int) -> str:
        """See `Engine`."""
        return self._servers.why(partition)

    def subscribe(
        self, partition: int, takes: Mapping[str, Take], tell: Callable[[object], None]
    ) -> None:
        """See `Engine`."""
        takers = {self.locate(channel).names.bus: take for channel, take in takes.items()}
        self._servers.subscribe(partition, takers, tell)

    def unsubscribe(self, partition: int, channels: Sequence[str]) -> None:
        """See `Engine`."""
        self._servers.unsubscribe(partition, [self.locate(one).names.bus for one in channels])

    def head(self, partition: int, channel: str, tell: Callable[[Place | Exception], None]) -> None:
        """See `Engine`."""
        command = packed("HMGET", self.locate(channel).names.meta, "e", "o", "u")
        self._servers.ask_bus(partition, command, lambda answer: tell(_head(answer)))

    def mark(self, partition: int, tell: Callable[[object], None]) -> None:
        """See `Engine`."""
        self._servers.ask_bus(partition, _PING, tell)

    def look(self, channel: str, since: Place | None) -> Receipt[Read]:
        """See `Engine`."""
        first, count = (_EMPTY, 0) if since is None else (since.offset or _EMPTY, ENTRIES)
        arguments: tuple[Part, ...] = (first, _EMPTY, count, 0, _BYTES, _EMPTY, _EMPTY, 0)
        receipt: Receipt[Read]
        try:
            receipt = self.reads.ask(
                self.partition_of(channel),
                object(),  # Nobody else asks the same at the same time.
                partial(self._read, channel, arguments),
                partial(_Looked, channel),
            )
        except BrokerError as error:
            receipt = Receipt()
            receipt.settle(error)
        return receipt

    def page(
        self, channel: str, since: StreamPosition | None, limit: int | None, reverse: bool
    ) -> Receipt[Page]:
        """A page, see `Broker.history`. A channel without a stream gets an epoch.

        Raises:
            BrokerError: the engine is known to be down.
        """
        first, last, count, wanted = "", "", _ALL if limit is None else limit, ""
        if since is not None:
            offset, wanted = min(since.offset, _MOST), since.epoch
            if not reverse:
                first = str(offset + 1)
            elif offset > 1:
                last = str(offset - 1)
            else:
                count = 0
        arguments = (first, last, count, int(reverse), 0, wanted)
        return self.reads.ask(
            self.partition_of(channel),
            (channel, arguments),
            partial(self._read_page, channel, arguments),
            partial(_Paged, channel, self._note_foreign),
        )

    def _read_page(self, channel: str, arguments: tuple[Part, ...], tell: Tell) -> None:
        self._read(channel, (*arguments, self._new_epoch(), _UNBORN), tell)

    def _read(self, channel: str, arguments: tuple[Part, ...], tell: Tell) -> None:
        partition, names = self.locate(channel)
        ask = partial(self._servers.ask, partition)
        try:
            HISTORY.ask(ask, (names.meta, names.stream), arguments, tell)
        except Lost as error:
            raise _down(error) from None

    def _note_foreign(self, entries: int) -> None:
        self.foreign += entries
        self._warnings.warn("streams have entries that are not ours", count=self.foreign)

    def fork(self, channel: str, epoch: str) -> Receipt[None]:
        """See `Engine`."""
        partition, names = self.locate(channel)
        receipt: Receipt[None] = Receipt()

        def tell(answer: object) -> None:
            receipt.settle(_failure(answer))

        try:
            FORK.ask(
                partial(self._servers.ask, partition),
                (names.meta, names.stream),
                (self._servers.publish, names.bus, epoch, self._new_epoch()),
                tell,
            )
        except Lost as error:
            receipt.settle(_down(error))
        return receipt

    def renew(self, channel: str) -> None:
        """See `Engine`."""
        partition, names = self.locate(channel)
        with suppress(Lost):  # Then it may get another epoch, and its listeners are told so.
            RENEW.ask(partial(self._servers.ask, partition), (names.meta,), (_UNBORN,), ignore)


class _Looked:
    """What a follower reads of a stream."""

    def __init__(self, channel: str, answer: object) -> None:
        self._channel = channel
        self._answer = answer
        self._top: Place | None = None
        self._entries: list[object] = []
        self._found: list[Message] = []

    def step(self, most: int) -> int:
        """Decode some entries; raises a `ForeignError` for what is not ours."""
        if self._top is None:
            self._top, self._entries = _parts(self._answer)
        found = self._found
        some = self._entries[len(found) : len(found) + most]
        found += [entry_of(self._channel, entry, self._top.epoch) for entry in some]
        return len(some)

    def result(self) -> Read:
        """The top, and what was found."""
        assert self._top is not None
        return Read(self._top, self._found)


class _Paged:
    """A page of a stream."""

    def __init__(self, channel: str, note_foreign: Callable[[int], None], answer: object) -> None:
        self._channel = channel
        self._note_foreign = note_foreign
        self._foreign = 0
        self._answer = answer
        self._top: Place | None = None
        self._entries: list[object] = []
        self._seen = 0
        self._found: list[Publication] = []

    def step(self, most: int) -> int:
        """Decode some entries; those that are not ours are left out."""
        if self._top is None:
            self._top, self._entries = _parts(self._answer)
        some = self._entries[self._seen : self._seen + most]
        for entry in some:
            try:
                event = entry_of(self._channel, entry, self._top.epoch).event
            except ForeignError:
                self._foreign += 1
                continue
            if type(event) is Publication:
                self._found.append(event)
        self._seen += len(some)
        return len(some)

    def result(self) -> Page:
        """The publications, and the top."""
        assert self._top is not None
        if self._foreign:
            self._note_foreign(self._foreign)
        return self._found, StreamPosition(self._top.offset, self._top.epoch)


def _parts(answer: object) -> tuple[Place, list[object]]:
    """What history.lua answers: the top, and entries.

    Raises:
        BrokerError: it is an error, or is not ours.
    """
    match answer:
        case [epoch, offset, uid, list() as entries]:
            return head_of(epoch, offset, uid), entries
    error = _failure(answer)
    raise BrokerError("the engine's answer cannot be read") if error is None else error


def _head(answer: object) -> Place | Exception:
    match answer:
        case [epoch, offset, uid]:
            try:
                return head_of(epoch, offset, uid)
            except ForeignError as error:
                return error
        case Lost():
            return answer
    return _failure(answer) or BrokerError("the engine's answer cannot be read")


def _failure(answer: object) -> BrokerError | None:
    if isinstance(answer, Lost):
        return _down(answer)
    if isinstance(answer, Refused):
        text = str(answer)
        if "WRONGTYPE" in text:
            return ForeignError("a key is not ours")
        return BrokerError(f"the engine refuses: {text[:100]}")
    return None


def _down(lost: Lost) -> BrokerError:
    return BrokerError(f"the engine is not there: {lost}")
