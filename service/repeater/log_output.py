"""Standard error, written by a thread: whoever logs never waits for the reader of the log.

A pipe that nobody reads, a stopped terminal or a full disk costs lines, and nothing else. The lines
wait in a queue with a bound in bytes. Lines that find no room, or that cannot be written, are
counted, and told in one line once writing works again.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

_LIMIT: Final = 1_048_576  # bytes that wait, some thousands of lines
_OVERHEAD: Final = 96  # bytes that a waiting line costs beside its text: its object and its place
_LAST: Final = 2.0  # seconds at the end of the process for the lines that wait

_STANDARD_ERROR: Final = 2


class LogOutput(io.RawIOBase):
    """A descriptor with a queue and a thread of its own, which ends with the process.

    `write` may be called in every thread, and by a finaliser in the middle of another `write`.
    """

    def __init__(
        self, descriptor: int, tell: Callable[[int], None], *, limit: int = _LIMIT
    ) -> None:
        """Begin to write.

        Args:
            descriptor: Is written to, and never closed.
            tell: Is called by the thread with the number of lines that were lost since the last
                call, once writing works again. What it writes takes its place in the queue.
            limit: Most bytes that wait.
        """
        self._descriptor = descriptor
        self._tell = tell
        self._limit = limit
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._lock = threading.RLock()
        self._waiting = 0
        self._told = 0
        self.lost = 0
        """Lines that were not written."""
        threading.Thread(target=self._run, name="log output", daemon=True).start()

    def writable(self) -> bool:
        """As of every stream that is written to."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Have the bytes written. Never waits, and never raises."""
        text = bytes(data)
        cost = len(text) + _OVERHEAD
        with self._lock:
            room = self._waiting + cost <= self._limit
            if room:
                self._waiting += cost
            else:
                self.lost += text.count(b"\n")
        if room:
            self._queue.put(text)
        return len(text)

    def drain(self, seconds: float = _LAST) -> bool:
        """Wait until what was written before this call is out; False if that takes too long."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            text = self._queue.get()
            if isinstance(text, threading.Event):
                text.set()
                continue
            works = self._is_written(text)
            with self._lock:
                self._waiting -= len(text) + _OVERHEAD
                if not works:
                    self.lost += text.count(b"\n")
                # Half empty: told once for each flood, and not for each line that a flood loses.
                told = works and self.lost > self._told and self._waiting <= self._limit // 2
                lines = self.lost - self._told
                if told:
                    self._told = self.lost
            if told:
                self._tell(lines)

    def _is_written(self, text: bytes) -> bool:
        """Write it, however long that takes; False if it cannot be written."""
        rest = memoryview(text)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True


_output: LogOutput | None = None


def open_log_output(tell: Callable[[int], None]) -> None:
    """Have all that this process writes to `sys.stderr` from now on written by a thread.

    At the end of the process, the lines that wait are written within two seconds. Does nothing if
    `sys.stderr` is not the process's own; a test replaces it, for example. For `tell`, see
    `LogOutput`.
    """
    global _output
    if sys.stderr is not sys.__stderr__:
        return
    # None if the descriptor was closed when Python started.
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    _output = LogOutput(_STANDARD_ERROR, tell)
    sys.stderr = io.TextIOWrapper(
        _output,
        encoding=encoding,
        errors="backslashreplace",
        write_through=True,
    )
    atexit.register(_output.drain)


def lost_lines() -> int:
    """Lines to standard error that were not written since the start of the process."""
    return 0 if _output is None else _output.lost


def open_missing_descriptors() -> None:
    """Open the null device for each closed descriptor of standard input, output and error.

    Otherwise the next file or socket gets the number, and is sent what was meant for the log.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
