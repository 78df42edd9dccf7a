"""What the parts that follow streams need of an engine.

Names are those of channels; keys and scripts are the engine's own matter. No call waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from repeater.errors import BrokerError

if TYPE_CHECKING:
    from repeater.brokers.receipts import Receipt
    from repeater.brokers.valkey.values import Place, Read

ENTRIES: Final = 1_000
"""Most entries of one read."""

Take = Callable[[bytes], None]
"""Takes the payload of one message of the bus."""


class ForeignError(BrokerError):
    """This was not written by a node; the reason repeats nothing of it."""


class Engine(Protocol):
    """One or several servers, in partitions; a channel is in one of them."""

    def partition_of(self, channel: str) -> int:
        """The partition that a channel is in."""

    def why(self, partition: int) -> str:
        """Why a partition is not there; empty while it is."""

    def subscribe(
        self, partition: int, takes: Mapping[str, Take], tell: Callable[[object], None]
    ) -> None:
        """Subscribe on the bus to channels of one partition.

        `tell` gets None when all are subscribed to, else the error; then none of them is. What is
        subscribed to is subscribed to again whenever the partition comes back, until `unsubscribe`.

        Raises:
            Lost: the partition is not there.
        """

    def unsubscribe(self, partition: int, channels: Sequence[str]) -> None:
        """End subscriptions. Never fails."""

    def head(self, partition: int, channel: str, tell: Callable[[Place | Exception], None]) -> None:
        """Ask for the top of a stream by the bus's connection: behind all messages up to it.

        `tell` gets the top, in its turn among the messages, `NO_STREAM` if there is none; or a
        `ForeignError` or another `BrokerError`, or a `Lost`.

        Raises:
            Lost: the partition is not there.
        """

    def look(self, channel: str, since: Place | None) -> Receipt[Read]:
        """Read a stream from a place on, inclusive: its first entries, and its top.

        Without a place the top alone. Reading makes no stream. A `ForeignError` is an answer of the
        receipt like any `BrokerError`.
        """

    def fork(self, channel: str, epoch: str) -> Receipt[None]:
        """End an epoch of a stream, if the stream has it still."""

    def renew(self, channel: str) -> None:
        """Keep the epoch of a stream without publications a while longer. Nobody waits for it."""

    def mark(self, partition: int, tell: Callable[[object], None]) -> None:
        """Call `tell` when what the bus has sent until now has been taken, or the bus has ended.

        Raises:
            Lost: the partition is not there.
        """
