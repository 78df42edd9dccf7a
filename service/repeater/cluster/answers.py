"""Questions that this node was asked, and its answers, for as long as they may be asked again.

Whoever hears no answer asks once more, since question or answer may be lost. So a question is
carried out once, and its answer is kept.
"""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT: Final = 10.0
"""Seconds for which a question is known, and its answer is kept."""

_OPEN: Final = 1_024  # questions that are carried out at the same time
_KNOWN: Final = 65_536  # questions; more in 10 s, and the oldest are forgotten
_BYTES: Final = 16_777_216  # of answers; beyond, the oldest are forgotten, but not their questions

Key = tuple[str, int]
"""The asker's id, and the number of its question."""


class Answers:
    """Lives inside `ClusterControl`."""

    def __init__(self) -> None:
        self._known: dict[Key, bytes | None] = {}
        """None for a question that is being carried out, and empty for an answer not kept."""
        self._begun: deque[tuple[float, Key]] = deque()
        self._answered: deque[Key] = deque()
        self._open = 0
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether too many questions are being carried out."""
        return self._open >= _OPEN

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def answer(self, key: Key) -> bytes | None:
        """The answer to a known question; None if it is being carried out, empty if not kept."""
        return self._known[key]

    def begin(self, key: Key, now: float) -> None:
        """Note that a question is carried out from now on."""
        self._forget(now)
        self._known[key] = None
        self._begun.append((now, key))
        self._open += 1

    def end(self, key: Key, answer: bytes) -> None:
        """Keep the answer."""
        self._open -= 1
        if key not in self._known:  # It took longer than anybody asks again.
            return
        self._known[key] = answer
        self._answered.append(key)
        self._bytes += len(answer)
        while self._bytes > _BYTES:
            self._drop(self._answered.popleft())

    def _drop(self, key: Key) -> None:
        answer = self._known.get(key)
        if answer:
            self._bytes -= len(answer)
            self._known[key] = b""

    def _forget(self, now: float) -> None:
        while self._begun and (self._begun[0][0] <= now - KEPT or len(self._begun) >= _KNOWN):
            _, key = self._begun.popleft()
            answer = self._known.pop(key)
            self._bytes -= len(answer or b"")
        while self._answered and self._answered[0] not in self._known:
            self._answered.popleft()
