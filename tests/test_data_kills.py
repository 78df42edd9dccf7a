"""Compaction and restore, killed at any moment: the old file or the new one is there, whole."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repeater.brokers.sqlite.compaction import compact
from repeater.brokers.sqlite.copies import REPLACED, back_up, restore
from repeater.brokers.sqlite.inspection import inspect
from repeater.brokers.sqlite.journal import FILE
from tests.deadlines import PROCESS_STARTS
from tests.histories import change, dump, make, opened

pytestmark = [pytest.mark.timeout(4 * PROCESS_STARTS), pytest.mark.slow]

ROUNDS = 6
SEED = random.randrange(1 << 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data directory with a file of 8 MB, half of it free."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    path = make(folder, streams=40, publications=1_000)
    change(path, "DELETE FROM publications WHERE stream % 2 = 0")
    change(path, "DELETE FROM streams WHERE id % 2 = 0")
    return folder


def kill_in_the_middle(folder: Path, chance: random.Random, call: str, *arguments: Path) -> bool:
    """Kill a process some time after it has begun its temporary file; whether it came too late."""
    lines = (
        "import sys, pathlib",
        "from repeater.brokers.sqlite.compaction import compact",
        "from repeater.brokers.sqlite.copies import restore",
        f"{call}(*map(pathlib.Path, sys.argv[1:]))",
    )
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines), *arguments]) as process:
        deadline = time.monotonic() + PROCESS_STARTS
        while not (folder / f"{FILE}.tmp").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.choice((0.0, 0.02, 0.1, 0.3)) * chance.random())
        process.kill()
        return process.wait() == 0


def whole(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of the history, once a start has looked at what the kill left."""
    with opened(folder) as journal:
        journal.streams()
    assert not list(folder.glob("*.tmp*"))
    assert not inspect(folder / FILE).faults
    return dump(folder / FILE)


def test_compact_killed(folder: Path, tmp_path: Path) -> None:
    """The rows are the same after each kill, and in the end the command succeeds."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    rows, size = whole(folder), (folder / FILE).stat().st_size
    shutil.copytree(folder, tmp_path / "before")
    late = 0
    for _ in range(ROUNDS):
        late += kill_in_the_middle(folder, chance, "compact", folder / FILE)
        assert whole(folder) == rows
        if (folder / FILE).stat().st_size < size:  # the new file had the name already
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "before", folder)
    assert late < ROUNDS
    compact(folder / FILE)
    assert whole(folder) == rows
    assert (folder / FILE).stat().st_size < 0.7 * size


def test_restore_killed(folder: Path, tmp_path: Path) -> None:
    """The old rows or the backup's are there, and what was replaced is kept."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    backup = tmp_path / "backup"
    back_up(folder / FILE, backup)
    change(folder / FILE, "DELETE FROM publications WHERE stream = 39")
    old, new = whole(folder)["publications"], dump(backup)["publications"]
    shutil.copytree(folder, tmp_path / "before")
    late = 0
    for _ in range(ROUNDS):
        late += kill_in_the_middle(folder, chance, "restore", folder, backup)
        found = whole(folder)["publications"]
        assert found in (old, new)
        if found == new:
            (kept,) = folder.glob(f"{FILE}{REPLACED}*")
            assert dump(kept)["publications"] == old
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "before", folder)
        else:  # A second name of the file itself is taken away by the next start.
            assert not list(folder.glob(f"{FILE}{REPLACED}*"))
    assert late < ROUNDS
    restore(folder, backup)
    assert whole(folder)["publications"] == new
