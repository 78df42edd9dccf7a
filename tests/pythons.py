"""Runs the tests on one interpreter of each minor version that is here: `just test-pythons`.

What drives a browser or an SDK, or is slow, is left out: those do not depend on the version. Each
version gets a fresh environment in .pythons/ with the pinned packages. Nothing is downloaded but
packages; a version that is not here is named. All versions run at the same time, since tests wait
more than they work; what one says is printed when it has ended. With `--others` as the first
argument, the version of `just test` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENTS: Final = ROOT / ".pythons"
THIS: Final = "{}.{}".format(*sys.version_info)
OTHERS: Final = "--others"
VERSIONS: Final = ("3.11", "3.12", "3.13", "3.14")
MARKERS: Final = "not sdk and not browser and not slow"
PROCESSES: Final = "2"  # for each version: tests wait half of their time
BUILD: Final = ("--build-constraints", "requirements-build.txt")
_START: Final = 20  # seconds until an interpreter must have said its version
_UV: Final = tuple(shlex.split(os.environ.get("UV", "uv")))


def find(version: str) -> str | None:
    """The path of an interpreter of this minor version that starts; None without one."""
    return next((path for path in _candidates(version) if _starts(path, version)), None)


def _candidates(version: str) -> Iterator[str]:
    """Where it may be: what uv finds, on the PATH, among pyenv's versions."""
    # uv gives up at pyenv's first shim of a version that pyenv has and does not use here.
    found = _printed(*_UV, "python", "find", "--system", "--no-python-downloads", version)
    if found is not None:
        yield found
    for folder in os.get_exec_path():
        yield str(Path(folder) / f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, newest_first(pyenv.glob(f"versions/{version}*/bin/python{version}")))


def newest_first(interpreters: Iterator[Path]) -> list[Path]:
    """Sorted by the numbers in the name of their version's folder; 3.12.10 is after 3.12.9."""
    return sorted(
        interpreters,
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.parent.name)],
        reverse=True,
    )


def _starts(path: str, version: str) -> bool:
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    return _printed(path, "-c", code) == version


def _printed(*command: str) -> str | None:
    """What a command prints, without spaces around it; None if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START,
            check=True,
            cwd="/",  # so that no setting of this folder chooses the version
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def run_tests(version: str, interpreter: str, arguments: Sequence[str], log: IO[bytes]) -> bool:
    """Run the tests in a fresh environment of this interpreter; whether they passed.

    What the commands say goes into `log`.
    """
    folder = ENVIRONMENTS / version
    python = str(folder / "bin" / "python")
    pip = (*_UV, "pip")
    for command in (
        (*_UV, "venv", "--quiet", "--clear", "--python", interpreter, str(folder)),
        (*pip, "sync", "-q", "--python", python, "--require-hashes", "requirements-dev.txt"),
        (*pip, "install", "-q", "--python", python, "--no-deps", *BUILD, "-e", "."),
        # The cache is the one of `just test`: its --last-failed means that run.
        (
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-n", PROCESSES, "-m", MARKERS, *arguments),
        ),
    ):
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            return False
    return True


def classified() -> set[str]:
    """The minor versions that the classifiers name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r".* :: Python :: (3\.\d+)", one) for one in project["classifiers"])
    return {match[1] for match in found if match}


def tested(version: str, interpreter: str, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the tests on this version, then print what they said; whether they passed, and a line."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        passed = run_tests(version, interpreter, arguments, log)
        log.seek(0)
        print(f"Python {version}: {interpreter}\n{log.read().decode(errors='replace')}", flush=True)
    seconds = f"{time.monotonic() - start:.0f} s"
    return passed, f"{'passed' if passed else 'FAILED'}, {seconds}, {interpreter}"


def main(arguments: Sequence[str]) -> int:
    """Run the tests on every version; 1 if they fail on one, 2 if no version is here."""
    others = arguments[:1] == [OTHERS]
    arguments = arguments[1:] if others else arguments
    versions = [version for version in VERSIONS if not (others and version == THIS)]
    here = {version: path for version in versions if (path := find(version)) is not None}
    with ThreadPoolExecutor() as pool:
        runs = {one: pool.submit(tested, one, path, arguments) for one, path in here.items()}
        results = {version: run.result() for version, run in runs.items()}
    for version in versions:
        named = ", though the classifiers name it" if version in classified() else ""
        outcome = results[version][1] if version in results else f"not here{named}"
        print(f"Python {version}: {outcome}", flush=True)
    if not results:
        return 2
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
