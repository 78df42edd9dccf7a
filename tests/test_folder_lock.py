"""One process at a time uses a data directory, and the next one is told which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repeater.brokers.sqlite.lock import FILE, FolderInUseError, hold_folder
from tests.processes import starts_processes

HOLDER = """
import sys
from pathlib import Path
from repeater.brokers.sqlite.lock import hold_folder

with hold_folder(Path(sys.argv[1]), "repeater data compact"):
    print("held", flush=True)
    sys.stdin.read()
"""


@starts_processes
@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL])
def test_another_process_is_named_and_its_end_frees_the_folder(
    tmp_path: Path, ends: signal.Signals
) -> None:
    """The message has number and name; a process that was killed holds nothing on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError) as found, hold_folder(tmp_path):
            raise AssertionError("it was held twice")
        wanted = f"{tmp_path} is in use by process {holder.pid} (repeater data compact)"
        assert str(found.value) == wanted
        holder.send_signal(ends)
    with hold_folder(tmp_path):
        assert (tmp_path / FILE).read_text() == f"{os.getpid()} repeater serve\n"


def test_a_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    """A second node in the same process is a second user, too."""
    with (
        hold_folder(tmp_path),
        pytest.raises(FolderInUseError, match=f"process {os.getpid()} "),
        hold_folder(tmp_path),
    ):
        raise AssertionError("it was held twice")
    with hold_folder(tmp_path):
        pass


def test_a_lock_without_a_name_still_holds(tmp_path: Path) -> None:
    """Between the lock and its text there is a moment: then the message names nobody."""
    with hold_folder(tmp_path):
        (tmp_path / FILE).write_text("")
        with (
            pytest.raises(FolderInUseError, match="in use by another process"),
            hold_folder(tmp_path),
        ):
            raise AssertionError("it was held twice")
