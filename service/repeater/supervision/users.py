"""The users of all workers, each counted once, however many workers have connections of it.

Each worker tells of each connection whose user is known, and of its end.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from repeater.tally import subtract

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions


class Users:
    """Connections by user, over all workers. Lives inside the supervisor; needs no end."""

    def __init__(self, questions: ServerQuestions) -> None:
        self.connections: Counter[str] = Counter()
        """The number of connections of each user that has one."""
        self._of_workers: dict[str, Counter[str]] = {}
        self._arrivals: list[Callable[[Member, str], None]] = []
        questions.hear("user_arrived", self._arrived)
        questions.hear("user_left", self._left)
        questions.at_end(self._forget)

    def at_arrival(self, heard: Callable[[Member, str], None]) -> None:
        """Have a function called when a connection of a user arrives on a worker."""
        self._arrivals.append(heard)

    def _arrived(self, worker: Member, body: bytes) -> None:
        user = body.decode(errors="surrogatepass")
        self.connections[user] += 1
        self._of_workers.setdefault(worker.id, Counter())[user] += 1
        for heard in self._arrivals:
            heard(worker, user)

    def _left(self, worker: Member, body: bytes) -> None:
        user = body.decode(errors="surrogatepass")
        subtract(self.connections, user)
        subtract(self._of_workers[worker.id], user)

    def _forget(self, worker: Member) -> None:
        """Take back what a worker told that has ended, also if it was killed."""
        for user, count in self._of_workers.pop(worker.id, Counter()).items():
            subtract(self.connections, user, count)
