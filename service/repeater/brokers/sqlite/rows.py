"""The rows of other databases that the file remembers, and what one commit changes of them.

A commit that fails must leave nothing behind. So a commit writes its changes beside what is kept,
and these become part of it after the commit only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from repeater.brokers.source_rows import SourceRows
from repeater.brokers.sqlite.records import StoredRow

if TYPE_CHECKING:
    from repeater.brokers.sqlite.records import Changes
    from repeater.publication import StreamPosition


class StoredRows(SourceRows):
    """What is committed. Lives inside the broker; changed by `RowChanges.apply` alone."""

    def restore(self, terms: dict[str, int], rows: Iterable[StoredRow]) -> None:
        """Take what the file has, before anything else is done."""
        self._terms.update(terms)
        self.restore_rows(rows)

    def restore_rows(self, rows: Iterable[StoredRow]) -> None:
        """Remember rows with their results."""
        for one in rows:
            self._results.setdefault(one.source, {})[one.name] = one.position


class RowChanges(SourceRows):
    """The changes of one commit, on top of what is committed. Lives inside the commit."""

    def __init__(self, kept: StoredRows) -> None:
        super().__init__()
        self._kept = kept
        self._forgotten: dict[tuple[str, str], None] = {}

    def term(self, source: str) -> int:
        """The highest term of a source, this commit included."""
        return max(super().term(source), self._kept.term(source))

    def result(self, source: str, name: str) -> tuple[StreamPosition | None] | None:
        """The result of a row, this commit included."""
        mine = super().result(source, name)
        if mine is not None or (source, name) in self._forgotten:
            return mine
        return self._kept.result(source, name)

    def forget(self, source: str, names: Iterable[str]) -> None:
        """Forget rows; those that are not remembered, too: the file may have them."""
        names = tuple(names)
        super().forget(source, names)
        self._forgotten.update(((source, name), None) for name in names)

    def give_changes(self, changes: Changes) -> None:
        """Add what the file has to keep of them to the changes of the commit."""
        changes.terms = dict(self._terms)
        changes.forgotten_rows = list(self._forgotten)
        changes.rows = [
            StoredRow(source, name, position)
            for source, results in self._results.items()
            for name, position in results.items()
        ]

    def apply(self, changes: Changes) -> None:
        """Make what is committed follow."""
        for source, name in changes.forgotten_rows:
            self._kept.forget(source, (name,))
        self._kept.restore(changes.terms, changes.rows)
