"""What a worker tells its supervisor of its own life, as lines in a pipe.

The pipe is beside the link to the supervisor, so that it works before the link is open, and after
the worker's event loop has ended: a traceback comes through it, also one that `faulthandler` writes
when the process crashes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from typing import Final

import trio

READY: Final = b"ready"
LEAVING: Final = b"leaving"
MISTAKE: Final = b"mistake "
_WORDS: Final = 16_384  # bytes of last words that are kept; a pipe holds 64 KiB
_READ: Final = 4_096


class Reports:
    """A worker's end of the pipe. Its calls never wait or fail: the supervisor may be gone."""

    def __init__(self, descriptor: int) -> None:
        """Write to a descriptor, which the process's end closes."""
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        faulthandler.enable(descriptor)

    def ready(self) -> None:
        """The worker listens, or has read its configuration again."""
        self._write(READY + b"\n")

    def reloading(self) -> None:
        """Nothing: the supervisor has asked for it."""

    def stopping(self) -> None:
        """The worker begins to shut down, and accepts nobody any more."""
        self._write(LEAVING + b"\n")

    def mistake(self, text: str) -> None:
        """The worker cannot start: one line for the user who started the server."""
        self._write(MISTAKE + " ".join(text.split()).encode() + b"\n")

    def failed(self, traceback: str) -> None:
        """An error of ours ended the worker."""
        self._write(traceback.encode(errors="backslashreplace")[-_WORDS:] + b"\n")

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text)


class ReadReports:
    """The supervisor's end of the pipe, and what has come through it."""

    def __init__(self, descriptor: int) -> None:
        """Own a descriptor; `read` closes it."""
        self._descriptor = descriptor
        self._rest = b""
        self._words = b""
        self.is_ready = False
        """Whether the worker has listened."""
        self.is_leaving = False
        """Whether the worker shuts down because it was asked to."""
        self.began = trio.Event()
        """Set when the worker listens, and if it never will."""
        self.left = trio.Event()
        """Set when the worker accepts nobody any more."""
        self.read_again = trio.Event()
        """Set when the worker has read its configuration again, or has left. Whoever asks for that
        puts another event in its place."""
        self.mistake = ""
        """Why the worker cannot start, if that is the user's mistake."""

    @property
    def words(self) -> str:
        """The traceback that the worker wrote before its end; maybe empty."""
        return (self._words + self._rest).decode(errors="replace").strip()

    async def read(self) -> None:
        """Take the reports until the worker has ended."""
        async with trio.lowlevel.FdStream(self._descriptor) as pipe:
            while text := await pipe.receive_some(_READ):
                *lines, self._rest = (self._rest + text).split(b"\n")
                for line in lines:
                    self._take(line)
                self._rest = self._rest[-_WORDS:]

    def over(self) -> None:
        """Nothing comes any more: the worker has ended."""
        for event in (self.began, self.left, self.read_again):
            event.set()

    def _take(self, line: bytes) -> None:
        if line == READY:
            if self.is_ready:
                self.read_again.set()
            self.is_ready = True
            self.began.set()
        elif line == LEAVING:
            self.is_leaving = True
            for event in (self.began, self.left, self.read_again):
                event.set()
        elif line.startswith(MISTAKE):
            self.mistake = line.removeprefix(MISTAKE).decode(errors="replace")
        else:
            self._words = (self._words + line + b"\n")[-_WORDS:]
