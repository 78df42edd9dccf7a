"""Rows of other databases that are published exactly once, and what an engine remembers of them.

A back end notes a publication as a row of its own database, in the transaction that it is about.
A node publishes the row and then removes it, but it may die between the two. So the engine keeps
the row's name together with the publication, until it is told that the row is gone: who finds the
row again is given the first result, however long that takes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from repeater.errors import BrokerError
from repeater.publication import StreamPosition


class SourceRow(msgspec.Struct, frozen=True):
    """Which row a publication is, for `Broker.submit`."""

    source: str
    """The database: a name that no other one has, at most 64 characters."""
    term: int
    """The number of the node that leads for this source, below 2^53; a later one has a higher."""
    name: str
    """The row: a name that the source never gives again, at most 64 characters."""
    after: str = ""
    """The row before it in the same channel, if that one may not be published yet."""


class DeposedError(BrokerError):
    """Another node leads for the source with a higher `term`. Nothing was published."""

    def __init__(self, term: int) -> None:
        super().__init__(f"another node leads with the term {term}")
        self.term = term


class AfterError(BrokerError):
    """The row before this one is not published, so this one is not either: the order is kept."""

    def __init__(self) -> None:
        super().__init__("the row before it is not published")


class SourceRows:
    """The rows that are remembered in this process, with their results. Lives inside a broker.

    No bound here: a node has only so many rows under way, and forgets one before it takes another.
    """

    def __init__(self) -> None:
        self._terms: dict[str, int] = {}
        self._results: dict[str, dict[str, StreamPosition | None]] = {}

    def find(self, row: SourceRow) -> tuple[StreamPosition | None] | None:
        """The first result, which may itself be None, in a tuple; None if it is to be published.

        Raises:
            DeposedError, AfterError: it must not be published.
        """
        term = self.term(row.source)
        if row.term < term:
            raise DeposedError(term)
        if row.term > term:
            self._terms[row.source] = row.term
        known = self.result(row.source, row.name)
        if known is None and row.after and self.result(row.source, row.after) is None:
            raise AfterError
        return known

    def term(self, source: str) -> int:
        """The highest term of a source; 0 if there is none."""
        return self._terms.get(source, 0)

    def result(self, source: str, name: str) -> tuple[StreamPosition | None] | None:
        """The result of a row in a tuple; None if it is not remembered."""
        results = self._results.get(source, {})
        return (results[name],) if name in results else None

    def keep(self, row: SourceRow, result: StreamPosition | None) -> None:
        """Remember that a row is published."""
        self._results.setdefault(row.source, {})[row.name] = result

    def names(self, source: str) -> list[str]:
        """The rows of a source that are remembered."""
        return list(self._results.get(source, ()))

    def forget(self, source: str, names: Iterable[str]) -> None:
        """Forget rows that are gone from their database; the source's term is kept."""
        results = self._results.get(source, {})
        for name in names:
            results.pop(name, None)
