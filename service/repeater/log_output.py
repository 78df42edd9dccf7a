"""Standard error, written without waiting: whoever logs never waits for the reader of the log.

A pipe that nobody reads, a stopped terminal or a full disk costs lines, and nothing else. A pipe, a
terminal or a socket is written at once, as far as it takes bytes. What it does not take, and all
that goes into a file, waits for a thread in a queue with a bound in bytes. Lines that find no room,
or that cannot be written, are counted, and told in one line once writing works again.

The thread is made when it is needed: in a process with a second thread, every `send` of the C
library is slower (some 50 instructions of 1,800 for a delivery), and fan-out is a loop of them. It
then stays: glibc never returns to the fast way, not even when the thread has ended and is joined.
A file has it too, although a file is seldom slow: a write waits as long as its file system is
frozen for a snapshot, or its server on the network does not answer.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

_LIMIT: Final = 1_048_576  # bytes that wait, some thousands of lines
_OVERHEAD: Final = 96  # bytes that a waiting line costs beside its text: its object and its place
_LAST: Final = 2.0  # seconds at the end of the process for the lines that wait

_STANDARD_ERROR: Final = 2


Write = Callable[[memoryview], int]


def _open_writer(descriptor: int, closing: contextlib.ExitStack) -> Write | None:
    """A call that writes to a descriptor and never waits; None if there is none.

    `closing` closes what was opened for it.

    To make the descriptor itself non-blocking would change it for all who share it.
    """
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(kind):
            shared = closing.enter_context(socket.socket(fileno=os.dup(descriptor)))
            return lambda text: shared.send(text, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(kind) or os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            closing.callback(os.close, own)
            return lambda text: os.write(own, text)
    except OSError:  # not on this system, or somebody else's terminal
        return None
    return None  # a file: its disk may be slow


class LogOutput(io.RawIOBase):
    """A descriptor with a queue, and a thread of its own that ends with the process.

    `write` may be called in every thread, and by a finaliser in the middle of another `write`.
    """

    def __init__(
        self, descriptor: int, tell: Callable[[int], None], *, limit: int = _LIMIT
    ) -> None:
        """Begin to write.

        Args:
            descriptor: Is written to, and never closed.
            tell: Is called with the number of lines that were lost since the last call, once
                writing works again. What it writes takes its place in the queue.
            limit: Most bytes that wait.
        """
        self._closing = contextlib.ExitStack()
        self._write_now = _open_writer(descriptor, self._closing)
        self._descriptor = descriptor
        self._tell = tell
        self._limit = limit
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._lock = threading.RLock()
        self._waiting = 0
        self._told = 0
        self.lost = 0
        """Lines that were not written."""
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Close what was opened beside the descriptor. Idempotent."""
        self._write_now = None
        self._closing.close()
        super().close()

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
        with self._lock:
            rest = self._try_now(text)
            if rest:
                self._put(rest)
        return len(text)

    def _try_now(self, text: bytes) -> bytes:
        """Write what goes out at once if nothing waits; return the rest."""
        if self._waiting or self._write_now is None:
            return text
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[self._write_now(rest) :]
        except BlockingIOError:
            return bytes(rest)
        except OSError:
            self.lost += text.count(b"\n")
        else:
            if lines := self._take_untold():
                self._tell(lines)
        return b""

    def _take_untold(self) -> int:
        """The number of lines that were lost and not told, which the caller tells now."""
        lines, self._told = self.lost - self._told, self.lost
        return lines

    def _put(self, text: bytes) -> None:
        """Leave the bytes to the thread. They are lost if there is no room, or no thread."""
        cost = len(text) + _OVERHEAD
        if self._waiting + cost <= self._limit and self._has_thread():
            self._waiting += cost
            self._queue.put(text)
        else:
            self.lost += text.count(b"\n")

    def _has_thread(self) -> bool:
        """Start the thread if it is not there; False if that is impossible, as at the very end."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log output", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def drain(self, seconds: float = _LAST) -> bool:
        """Wait until what was written before this call is out; False if that takes too long."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            text = self._queue.get()
            if isinstance(text, threading.Event):
                text.set()
                continue
            works, lines = self._is_written(text), 0
            with self._lock:
                self._waiting -= len(text) + _OVERHEAD
                if not works:
                    self.lost += text.count(b"\n")
                elif self._waiting <= self._limit // 2:
                    # Half empty: told once for each flood, and not for each line that it loses.
                    lines = self._take_untold()
            if lines:
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
    """Have all that this process writes to `sys.stderr` from now on written without waiting.

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
