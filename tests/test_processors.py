"""How many workers "auto" means: affinity, and the quotas of cgroups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from repeater.serving.errors import ServeError
from repeater.serving.processors import count_workers, usable_processors


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on eight processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def machine(root: Path, group: str, quotas: dict[str, str]) -> Path:
    """A file system in which this process is in a cgroup, and cgroups have these `cpu.max`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"12:cpu:/old\n0::{group}\n")
    for name, quota in quotas.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(quota)
    return root


@pytest.mark.parametrize(
    ("group", "quotas", "expected"),
    [
        ("/a/b", {"a/b": "200000 100000\n"}, 2),
        ("/a/b", {"a/b": "150000 100000\n"}, 2),  # rounded up
        ("/a/b", {"a/b": "10000 100000\n"}, 1),
        ("/a/b", {"a/b": "max 100000\n"}, 8),
        ("/a/b", {"a/b": "1600000 100000\n"}, 8),  # not more than the affinity
        ("/a/b", {"a": "300000 100000\n", "a/b": "max 100000\n"}, 3),  # a quota around it
        ("/a/b", {"a": "300000 100000\n", "a/b": "500000 100000\n"}, 3),
        ("/", {"": "400000 100000\n"}, 4),  # in a container
        ("/host/path", {"": "400000 100000\n"}, 4),  # in one that sees the host's path
        ("/a/b", {"a/b": "nonsense"}, 8),
        ("/a/b", {"a/b": "100000 0"}, 8),
    ],
)
def test_quotas(tmp_path: Path, group: str, quotas: dict[str, str], expected: int) -> None:
    """The smallest one counts, in whole processors; what cannot be read does not."""
    assert usable_processors(machine(tmp_path, group, quotas)) == expected


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    """The affinity alone counts."""
    assert usable_processors(tmp_path) == 8


def test_a_number_is_taken_as_it_is() -> None:
    """`auto` is this machine's."""
    assert count_workers(3) == 3
    assert count_workers("auto") == usable_processors()


def test_workers_are_not_for_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so; a single process is."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert count_workers(1) == 1
    with pytest.raises(ServeError, match="not Windows"):
        count_workers(2)
