"""What a loss of power leaves of a durable history, by a recording of SQLite's writes and syncs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from repeater.brokers.sqlite import files
from repeater.brokers.sqlite.journal import Durability
from repeater.brokers.sqlite.opening import open_sqlite_broker
from tests.drill.disk import FATES, Disk, dropped, kept, steps, torn
from tests.drill.recorder import HEAD, OPEN, SYNC, TRUNCATE, WRITE, Recorder, Unsupported

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

_DATABASE = "history.sqlite3"


@contextmanager
def recorded(file: Path) -> Iterator[None]:
    """Record for the time of a block what SQLite does in this process."""
    try:
        recorder = Recorder(file)
    except Unsupported as why:
        pytest.skip(str(why))
    try:
        yield
    finally:
        recorder.close()


def disk_after(recording: bytes) -> Disk:
    disk = Disk({})
    for step in steps(recording):
        disk.take(step)
    return disk


def record(operation: int, at: int = 0, data: bytes = b"") -> bytes:
    """A record about the database's own file."""
    return HEAD.pack(0, operation, 0, at, len(data)) + data


@pytest.mark.parametrize("durability", ["disk", "process"])
async def test_what_a_start_writes_is_synced(durability: Durability, tmp_path: Path) -> None:
    """A loss of power does not undo a generation that subscribers were told of, or a clean end
    that has been followed by a start."""
    recording = tmp_path / "recording"
    folder = tmp_path / "data"
    with recorded(recording):
        async with open_sqlite_broker(folder, durability=durability):
            first = disk_after(recording.read_bytes())
        async with open_sqlite_broker(folder, durability=durability):
            second = disk_after(recording.read_bytes())
    assert (first.waiting, second.waiting) == (0, 0)


async def test_a_recording_repeats_the_files(tmp_path: Path) -> None:
    """With everything kept, the recorded steps make the file that the broker has left."""
    recording, folder = tmp_path / "recording", tmp_path / "data"
    with recorded(recording):
        async with open_sqlite_broker(folder):
            pass
    found = disk_after(recording.read_bytes()).after_loss(Random(0), kept)
    assert found[_DATABASE] == (folder / _DATABASE).read_bytes()


def test_a_synced_write_is_there_whatever_happens() -> None:
    """No fate takes it away, and none brings back what was there before."""
    written = record(OPEN) + record(WRITE, 0, b"old") + record(WRITE, 0, b"new") + record(SYNC)
    for fate in FATES:
        disk = disk_after(written)
        disk.take(next(steps(record(WRITE, 3, b"!"))))
        # Only the name of a file in a folder that was not synced may be gone as well.
        found = disk.after_loss(Random(1), fate).get(_DATABASE, b"new")
        assert found[:3] == b"new"


def test_a_write_that_is_not_synced_may_be_lost_or_torn() -> None:
    """What a torn write leaves out holds what was there before."""
    before, after = b"a" * 2_048, b"b" * 2_048
    disk = Disk({_DATABASE: before})
    disk.take(next(steps(record(WRITE, 0, after))))
    assert disk.after_loss(Random(0), dropped) == {_DATABASE: before}
    assert disk.after_loss(Random(0), kept) == {_DATABASE: after}
    found = {disk.after_loss(Random(seed), torn)[_DATABASE] for seed in range(200)}
    sectors = {file[at : at + 512] for file in found for at in range(0, 2_048, 512)}
    assert sectors == {b"a" * 512, b"b" * 512}
    assert len(found) > 10


def test_a_truncation_is_undone_too() -> None:
    """It is a change like any other, and waits for a sync."""
    disk = Disk({_DATABASE: b"abc"})
    disk.take(next(steps(record(TRUNCATE, 1))))
    assert disk.after_loss(Random(0), dropped) == {_DATABASE: b"abc"}
    assert disk.after_loss(Random(0), kept) == {_DATABASE: b"a"}
    disk.take(next(steps(record(SYNC))))
    assert disk.after_loss(Random(0), dropped) == {_DATABASE: b"a"}


def test_half_a_record_is_left_out() -> None:
    """The recording's writer may be killed within a record."""
    whole = record(WRITE, 0, b"abc")
    assert [bytes(step.data) for step in steps(whole + whole[:-1])] == [b"abc"]


def test_names_that_went_are_gone_before_a_file_gets_a_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power could leave the new file beside the old one's WAL."""
    done = list[str]()
    sync, replace = files.sync, Path.replace

    def noted_sync(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with files.replacing(tmp_path / "file"):
        pass
    folder = f"sync {tmp_path.name}"
    assert done == ["sync file.tmp", folder, "replace", folder]
