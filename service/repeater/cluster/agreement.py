"""Whether the nodes of a cluster go together: the same options, and each a name of its own.

Nothing fails if they do not, so it is only said in the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.cluster.roster import MemberRow

_log = get_logger("cluster")

_SAME_NAME: Final = 60.0  # seconds: a server that is restarted has its name twice until the old
# process has ended, or is lost
_SAY_AGAIN: Final = 3_600.0  # seconds between two lines about names


class Agreement:
    """Lives inside `Members`."""

    def __init__(self, name: str, options: Callable[[], str]) -> None:
        """Take this node's name, and what gives a digest of what all should have in common."""
        self._name = name
        self._options = options
        self._told: set[tuple[str, str, str]] = set()
        self._namesakes: dict[str, float] = {}
        """The ids of the others with the same name, and since when they are known."""
        self._quiet_until = -math.inf

    def digest(self) -> str:
        """This node's digest now."""
        return self._options()

    def check(self, others: Iterable[MemberRow]) -> None:
        """Warn of what does not go together; called at each beat with all other members."""
        rows = tuple(others)
        self._compare_options(rows)
        self._compare_names(rows)

    def _compare_options(self, rows: Iterable[MemberRow]) -> None:
        """Warn of each node with other options, once."""
        mine = self._options()
        other = {
            (row.id, row.options, mine): row
            for row in rows
            if mine and row.options and row.options != mine
        }
        for known, row in other.items():
            if known not in self._told:
                _log.warning(
                    "another node has other options of channels, or other events",
                    member=row.id,
                    node=row.name,
                )
        self._told = set(other)

    def _compare_names(self, rows: Iterable[MemberRow]) -> None:
        """Warn of nodes with this one's name, once an hour."""
        now = trio.current_time()
        self._namesakes = {
            row.id: self._namesakes.get(row.id, now) for row in rows if row.name == self._name
        }
        lasting = [one for one, since in self._namesakes.items() if now - since >= _SAME_NAME]
        if lasting and now >= self._quiet_until:
            self._quiet_until = now + _SAY_AGAIN
            _log.warning(
                "another node has the same name: set another node_name, "
                "or the application takes the connections of one for ended",
                name=self._name,
                members=lasting,
            )
