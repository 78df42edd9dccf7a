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
import time
from collections.abc import Mapping
from typing import Final
from zlib import crc32

_GROUPS: Final = (
    65_536  # names share one count of forgotten streams; at most 8 MB when all are used
)
_NAMESPACE_END: Final = ":"
_BASE: Final = "base"
_FORGOTTEN: Final = "forgotten"
_INTERRUPTED: Final = "interrupted"
_SILENT: Final = "silent"


class Epochs:
    """Lives inside the broker. A new one has epochs that no other has.

    A broker that outlives its process keeps what `changes` returns, and begins with it again.
    """

    def __init__(self, kept: Mapping[str, str] | None = None, suffix: str = "") -> None:
        """Begin anew, or with all the values that `changes` has ever returned.

        Every epoch ends with `suffix`.
        """
        kept = kept or {}
        # What has had a new epoch since the start; None where no process was before this one.
        self._new: set[int | str] | None = set() if _BASE in kept else None
        self.suffix = suffix
        self._base = kept.get(_BASE) or secrets.token_urlsafe(6)
        self._forgotten: dict[int, int] = {}  # streams that were forgotten, by group of names
        self._interrupted: dict[str, int] = {}  # times that history came back, by namespace
        self._silent: set[str] = set()  # namespaces published to while they kept no history
        self._changed: dict[str, str] = {} if _BASE in kept else {_BASE: self._base}
        for key, value in kept.items():
            kind, _, name = key.partition(":")
            if kind == _FORGOTTEN:
                self._forgotten[int(name)] = int(value)
            elif kind == _INTERRUPTED:
                self._interrupted[name] = int(value)
            elif kind == _SILENT and value:
                self._silent.add(name)

    def changes(self) -> dict[str, str]:
        """What has changed since the last call, by key."""
        changed, self._changed = self._changed, {}
        return changed

    def restore_changes(self, taken: Mapping[str, str]) -> None:
        """Take back changes that could not be kept."""
        self._changed = {**taken, **self._changed}

    def of(self, channel: str) -> str:
        """The epoch of a name without a stream, and of the stream that it gets next."""
        namespace = _namespace(channel)
        if namespace in self._silent:
            self._silent.discard(namespace)
            times = self._interrupted[namespace] = self._interrupted.get(namespace, 0) + 1
            self._note_new(namespace)
            self._changed[f"{_SILENT}:{namespace}"] = ""
            self._changed[f"{_INTERRUPTED}:{namespace}"] = str(times)
        forgotten = self._forgotten.get(_group(channel), 0)
        # Both counts only grow, so the sum is another one after each event.
        generation = forgotten + self._interrupted.get(namespace, 0)
        return f"{self._base}{generation or ''}{self.suffix}"

    def forget(self, channel: str) -> None:
        """Note that the stream of this name was forgotten: the next one needs another epoch."""
        group = _group(channel)
        self._set_forgotten(group, self._forgotten.get(group, 0) + 1)

    def renew(self, channel: str) -> None:
        """Give this name an epoch that no process has told, not even one that this one forgot.

        So it follows the machine's clock: what is kept may be an older copy, whose counts another
        process has gone on with.
        """
        group = _group(channel)
        self._set_forgotten(group, max(self._forgotten.get(group, 0) + 1, int(time.time())))

    def _set_forgotten(self, group: int, times: int) -> None:
        self._forgotten[group] = times
        self._note_new(group)
        self._changed[f"{_FORGOTTEN}:{group}"] = str(times)

    def _note_new(self, changed: int | str) -> None:
        if self._new is not None:
            self._new.add(changed)

    def may_be_known(self, channel: str) -> bool:
        """Whether an earlier process may have told the epoch that `of` gives this name now."""
        if self._new is None:
            return False
        return _group(channel) not in self._new and _namespace(channel) not in self._new

    def interrupt(self, channel: str) -> None:
        """Note a publication to a channel whose options keep no history now."""
        namespace = _namespace(channel)
        if namespace not in self._silent:
            self._silent.add(namespace)
            self._changed[f"{_SILENT}:{namespace}"] = "1"


def _group(channel: str) -> int:
    # Not `hash`, which is another one in each process.
    return crc32(channel.encode(errors="surrogatepass")) % _GROUPS


def _namespace(channel: str) -> str:
    """What is before the colon. The node knows few namespaces, so there are few of these texts."""
    name, end, _ = channel.partition(_NAMESPACE_END)
    return name if end else ""
