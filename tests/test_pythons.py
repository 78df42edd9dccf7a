"""`just test-pythons`: which interpreters it takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from tests import pythons

HERE = "{}.{}".format(*sys.version_info)


def script(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither uv nor the PATH nor pyenv has an interpreter."""
    monkeypatch.setattr(pythons, "_UV", (str(tmp_path / "no-uv"),))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))


def test_missing_version_is_not_found() -> None:
    """If no place has the version, no interpreter is found."""
    assert pythons.find(HERE) is None


def test_shim_that_does_not_start_does_not_hide_pyenvs_own_version(tmp_path: Path) -> None:
    """pyenv's shim of a version that is not chosen exits with 127; the version itself starts."""
    script(tmp_path / "bin" / f"python{HERE}", "exit 127")
    found = script(
        tmp_path / "pyenv" / "versions" / f"{HERE}.1" / "bin" / f"python{HERE}", f"echo {HERE}"
    )
    assert pythons.find(HERE) == str(found)


def test_interpreter_of_another_version_does_not_count(tmp_path: Path) -> None:
    """Whatever a file is called, what it says decides."""
    script(tmp_path / "bin" / "python3.12", "echo 3.11")
    assert pythons.find("3.12") is None


def test_newest_of_pyenvs_patch_versions_comes_first() -> None:
    """Numbers are compared as numbers."""
    paths = [Path(f"versions/{name}/bin/python3.12") for name in ("3.12.9", "3.12.10", "3.12.1")]
    assert [path.parts[1] for path in pythons.newest_first(iter(paths))] == [
        "3.12.10",
        "3.12.9",
        "3.12.1",
    ]


def test_classifiers_name_no_other_version() -> None:
    """What is classified is among the versions that are tried."""
    assert pythons.classified() <= set(pythons.VERSIONS)


def test_the_version_of_just_test_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI runs all tests on it anyway."""
    asked: list[str] = []
    monkeypatch.setattr(pythons, "find", asked.append)  # which finds nothing
    assert pythons.main(["--others"]) == 2
    assert HERE not in asked
    assert pythons.main([]) == 2
    assert HERE in asked
    assert "not here" in capsys.readouterr().out


def test_all_versions_run_and_one_failure_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What each of them said is printed as a whole, and a line for each comes last."""

    def run(version: str, _interpreter: str, arguments: Sequence[str], log: IO[bytes]) -> bool:
        log.write(f"{version} says {arguments}\n".encode())
        return version != "3.13"

    monkeypatch.setattr(pythons, "find", lambda version: f"/python{version}")
    monkeypatch.setattr(pythons, "run_tests", run)
    assert pythons.main(["-k", "x"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "3.12 says ['-k', 'x']" in lines
    assert [line.split(",")[0] for line in lines[-4:]] == [
        "Python 3.11: passed",
        "Python 3.12: passed",
        "Python 3.13: FAILED",
        "Python 3.14: passed",
    ]
