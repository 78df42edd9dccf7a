"""The epochs of streams that nothing was published to yet, without a memory of names.

A name that was never published to has offset 0 and an epoch, so that a subscriber can recover its
first publication. Anybody may ask for any name, so this epoch is computed, not stored. Two events
must change it, because a subscriber at offset 0 would otherwise be told that nothing is missing:
the stream of the name was forgotten, or the name was published to while its namespace kept no
history. Both are noted in few numbers. So some names get a new epoch without need, and their
subscribers, who wait at offset 0, are told once that they may have missed something.
"""

from __future__ import annotations

import secrets
from typing import Final

_GROUPS: Final = (
    65_536  # names share one count of forgotten streams; at most 8 MB when all are used
)
_NAMESPACE_END: Final = ":"


class Epochs:
    """Lives inside the broker. A new one has epochs that no other has."""

    def __init__(self) -> None:
        self._base = secrets.token_urlsafe(6)
        self._forgotten: dict[int, int] = {}  # streams that were forgotten, by group of names
        self._interrupted: dict[str, int] = {}  # times that history came back, by namespace
        self._silent: set[str] = set()  # namespaces published to while they kept no history

    def of(self, channel: str) -> str:
        """The epoch of a name without a stream, and of the stream that it gets next."""
        namespace = _namespace(channel)
        if namespace in self._silent:
            self._silent.discard(namespace)
            self._interrupted[namespace] = self._interrupted.get(namespace, 0) + 1
        forgotten = self._forgotten.get(_group(channel), 0)
        # Both counts only grow, so the sum is another one after each event.
        generation = forgotten + self._interrupted.get(namespace, 0)
        return f"{self._base}{generation}" if generation else self._base

    def forget(self, channel: str) -> None:
        """Note that the stream of this name was forgotten: the next one needs another epoch."""
        group = _group(channel)
        self._forgotten[group] = self._forgotten.get(group, 0) + 1

    def interrupt(self, channel: str) -> None:
        """Note a publication to a channel whose options keep no history now."""
        self._silent.add(_namespace(channel))


def _group(channel: str) -> int:
    return hash(channel) % _GROUPS


def _namespace(channel: str) -> str:
    """What is before the colon. The node knows few namespaces, so there are few of these texts."""
    name, end, _ = channel.partition(_NAMESPACE_END)
    return name if end else ""
