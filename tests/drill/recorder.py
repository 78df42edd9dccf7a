"""Records what SQLite writes and syncs in this process, call by call, with the bytes and the time.

The recorder replaces functions in the tables of SQLite's own Unix file system, in the very library
that the standard library's `sqlite3` uses: so the server's SQLite and its settings are what is
recorded. It needs neither strace nor a compiler nor root. It does need a Python whose `_sqlite3`
gives away the library's functions, as one that is linked to a shared library does.

As a program it is the server's command: its first word is the file of the recording.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final
from unittest import mock

from repeater.brokers.sqlite import journal, opening
from repeater.cli.main import main

HEAD: Final = struct.Struct("<QBBQI")
"""Time (ns of the monotonic clock), operation, file, offset or size, length of the bytes behind."""
OPEN, WRITE, TRUNCATE, SYNC, DELETE = range(5)
FILES: Final = ("history.sqlite3", "history.sqlite3-wal")
"""The files that are recorded, by their numbers."""

_OK: Final = 0


class Unsupported(Exception):  # noqa: N818  # the drill is skipped
    """This Python's SQLite cannot be recorded."""


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, which a file's first member points to."""

    _fields_ = (
        ("version", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("close", "read", "write", "truncate", "sync")),
        ("others", ctypes.c_void_p * 13),
    )


class _File(ctypes.Structure):
    """`sqlite3_file`, the beginning of each open file."""

    _fields_ = (("methods", ctypes.POINTER(_Methods)),)


class _System(ctypes.Structure):
    """`sqlite3_vfs`: how files are opened and deleted."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("next", "name", "data", "open", "delete")),
    )


_int, _long, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_Open = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _pointer, _int, _pointer)
_Delete = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _int)
_Write = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _int, _long)
_Truncate = ctypes.CFUNCTYPE(_int, _pointer, _long)
_Sync = ctypes.CFUNCTYPE(_int, _pointer, _int)


class Recorder:
    """Records files that are opened from now on, until `close`; these must be closed by then.

    Raises:
        Unsupported: SQLite's functions are not to be found.
    """

    def __init__(self, recording: Path) -> None:
        self._system = system = _default_system()
        self._recording = os.open(recording, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers: dict[int, int] = {}  # files by their addresses
        self._tables: dict[int, _Methods] = {}  # by the address of the original
        self._open = _Open(system.open)
        self._delete = _Delete(system.delete)
        self._kept: list[Any] = [_Open(self._opened), _Delete(self._deleted)]
        system.open, system.delete = (_address(one) for one in self._kept)

    def close(self) -> None:
        """Record no more."""
        self._system.open, self._system.delete = _address(self._open), _address(self._delete)
        os.close(self._recording)

    def _note(self, operation: int, file: int, at: int, data: bytes = b"", moment: int = 0) -> None:
        head = HEAD.pack(moment or time.monotonic_ns(), operation, file, at, len(data))
        os.write(self._recording, head + data)

    def _opened(self, system: int, name: int | None, file: int, flags: int, out: int) -> int:
        self._numbers.pop(file, None)
        path = Path(os.fsdecode(ctypes.string_at(name))) if name else Path()
        result = self._open(system, name, file, flags, out)
        if result == _OK and path.name in FILES:
            self._numbers[file] = number = FILES.index(path.name)
            self._note(OPEN, number, 0)
            opened = _File.from_address(file)
            original = ctypes.addressof(opened.methods.contents)
            if original not in self._tables:
                self._tables[original] = self._recorded(opened.methods.contents)
            opened.methods = ctypes.pointer(self._tables[original])
        return int(result)

    def _recorded(self, original: _Methods) -> _Methods:
        """A copy of a file's methods, three of which record what they do."""
        write, truncate = _Write(original.write), _Truncate(original.truncate)
        sync = _Sync(original.sync)

        def written(file: int, data: int, length: int, offset: int) -> int:
            # The time before a write and after a sync: so both stand in for the least favourable.
            self._note(WRITE, self._numbers[file], offset, ctypes.string_at(data, length))
            return int(write(file, data, length, offset))

        def truncated(file: int, size: int) -> int:
            self._note(TRUNCATE, self._numbers[file], size)
            return int(truncate(file, size))

        def synced(file: int, flags: int) -> int:
            result = int(sync(file, flags))
            if result == _OK:
                self._note(SYNC, self._numbers[file], 0)
            return result

        table = _Methods()
        ctypes.pointer(table)[0] = original
        functions = (_Write(written), _Truncate(truncated), _Sync(synced))
        self._kept += functions
        table.write, table.truncate, table.sync = map(_address, functions)
        return table

    def _deleted(self, system: int, name: int, sync_folder: int) -> int:
        path = Path(os.fsdecode(ctypes.string_at(name)))
        moment = time.monotonic_ns()
        result = int(self._delete(system, name, sync_folder))
        if result == _OK and path.name in FILES:
            self._note(DELETE, FILES.index(path.name), sync_folder, moment=moment)
        return result


def check_supported() -> None:
    """Look whether this Python's SQLite can be recorded.

    Raises:
        Unsupported: it cannot.
    """
    _default_system()


def _default_system() -> _System:
    import _sqlite3  # not part of every Python

    try:
        # The linker looks for a function in all libraries that this one is linked to.
        find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    except (AttributeError, OSError) as error:
        raise Unsupported(f"SQLite is hidden in this Python: {error}") from None
    find.restype = ctypes.POINTER(_System)
    find.argtypes = (ctypes.c_char_p,)
    found: _System = find(None).contents
    return found


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def prepare(recording: Path) -> Recorder:
    """Record this process from now on.

    Two variables change what the server believes: `DRILL_BOOT` names the file of the machine's boot
    id, and with `DRILL_SYNCHRONOUS` SQLite syncs less than the server tells it to.
    """
    if boot := os.environ.get("DRILL_BOOT"):
        mock.patch.object(opening, "_BOOT_ID", Path(boot)).start()
    if level := os.environ.get("DRILL_SYNCHRONOUS"):
        mock.patch.object(journal, "sqlite3", _Spoilt(level)).start()
    return Recorder(recording)


class _Spoilt:
    """The module `sqlite3`, whose connections sync as rarely as they are told here."""

    def __init__(self, level: str) -> None:
        self._level = level

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        level = self._level

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *rest: Any) -> sqlite3.Cursor:
                if statement.startswith("PRAGMA synchronous ="):
                    statement = f"PRAGMA synchronous = {level}"
                return super().execute(statement, *rest)

        return sqlite3.connect(*args, factory=Connection, **options)


if __name__ == "__main__":
    recorder = prepare(Path(sys.argv.pop(1)))
    main()
