"""What a disk may hold after a loss of power, by a recording of what was written and synced.

A write that was synced is there. Each write since then is there, or is not, or is torn: some of
its sectors are there and others hold what was there before, or nothing. No order holds among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.drill.recorder import DELETE, FILES, HEAD, OPEN, SYNC, TRUNCATE, WRITE

SECTOR: Final = 512

WAL: Final = FILES.index("history.sqlite3-wal")


@dataclass(frozen=True)
class Step:
    """One record: an operation, its time in nanoseconds, and how far it lies in the recording."""

    moment: int
    operation: int
    file: int
    at: int
    data: memoryview


def steps(recording: bytes) -> Iterator[Step]:
    """The whole records of a recording; its writer may have been killed within the last one."""
    view, at = memoryview(recording), 0
    while len(view) - at >= HEAD.size:
        moment, operation, file, offset, length = HEAD.unpack_from(view, at)
        at += HEAD.size
        if len(view) - at < length:
            return
        yield Step(moment, operation, file, offset, view[at : at + length])
        at += length


@dataclass
class _File:
    synced: bytearray = field(default_factory=bytearray)
    waiting: list[Step] = field(default_factory=list)
    named: bool = False
    """Whether the folder is synced since the file was made."""
    deleted: bool = False

    def sync(self) -> None:
        for step in self.waiting:
            _change(self.synced, step)
        self.waiting.clear()


class Disk:
    """What was written up to a moment, and what of it was synced.

    Args:
        files: What was there before the recording began; it counts as synced.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = [_File(bytearray(files.get(name, b"")), [], name in files) for name in FILES]

    @property
    def waiting(self) -> int:
        """The writes that a loss of power may undo now."""
        return sum(len(file.waiting) for file in self._files)

    def take(self, step: Step) -> None:
        """Go on by one operation."""
        file = self._files[step.file]
        if step.operation == OPEN:
            file.deleted = False
        elif step.operation == SYNC:
            file.sync()
            if step.file == WAL:
                # SQLite syncs the folder with the first sync of a WAL that it made.
                for one in self._files:
                    one.named = True
        elif step.operation == DELETE:
            file.deleted = True
        else:
            file.waiting.append(step)

    def after_loss(self, rng: Random, fate: Fate) -> Mapping[str, bytes]:
        """The files that the next start may find."""
        found = dict[str, bytes]()
        for name, file in zip(FILES, self._files, strict=True):
            if file.deleted and rng.random() < 0.5:
                continue
            if not (file.named or file.waiting or file.synced):
                continue
            if not file.named and rng.random() < 0.5:
                continue
            content = bytearray(file.synced)
            for step in fate(file.waiting, rng):
                _change(content, step, rng if fate is torn else None)
            found[name] = bytes(content)
        return found


Fate = Callable[[list[Step], Random], Iterator[Step]]
"""Which of the writes that were not synced reach the disk."""


def dropped(waiting: list[Step], rng: Random) -> Iterator[Step]:
    """None of them."""
    return iter(())


def kept(waiting: list[Step], rng: Random) -> Iterator[Step]:
    """All of them, as when the process is killed and the machine goes on."""
    return iter(waiting)


def begun(waiting: list[Step], rng: Random) -> Iterator[Step]:
    """The first of them, in their order."""
    return iter(waiting[: rng.randint(0, len(waiting))])


def mixed(waiting: list[Step], rng: Random) -> Iterator[Step]:
    """Some of them, in spite of their order."""
    share = rng.random()
    return (step for step in waiting if rng.random() < share)


def torn(waiting: list[Step], rng: Random) -> Iterator[Step]:
    """Some of them, and of these some sectors."""
    return mixed(waiting, rng)


FATES: Final = (dropped, kept, begun, mixed, torn)


def _change(content: bytearray, step: Step, rng: Random | None = None) -> None:
    """Make one change; with `rng` only in some of its sectors."""
    if step.operation == TRUNCATE:
        del content[step.at :]
        return
    assert step.operation == WRITE
    end = step.at + len(step.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if rng is None:
        content[step.at : end] = step.data
        return
    at = step.at
    while at < end:
        border = min(end, at - at % SECTOR + SECTOR)
        if rng.random() < 0.5:
            content[at:border] = step.data[at - step.at : border - step.at]
        at = border
