"""What the gate measures: the work tree, or another revision of this repository.

The gate's own code, its clients and its way to count always come from the work tree; only the
server comes from the revision. A revision is unpacked into a folder of its own, and the packages
that it pins go into an environment of its own. Both are removed when the block ends. Git's own
records stay as they are, so a gate that was killed leaves a temporary folder and nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.peers.repeater import ARGUMENTS
from benchmarks.servers import ROOT

_LAYOUTS: Final = (("service", "repeater"), (".", "service"))
"""Source root and package: today's layout, and the one from before the package had its name."""
_SECONDS: Final = 300  # for one command; the environment takes 2 where the packages are cached


class BuildError(Exception):
    """A revision does not exist, or cannot be started here."""


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """A server that can be started: one interpreter, one tree of sources."""

    title: str
    """For tables, e.g. "work tree" or "bc19aa7"."""
    root: Path
    """The tree's root, in which the server runs."""
    source: Path
    """The folder that holds the package."""
    package: str
    python: str

    def command(self) -> Sequence[str]:
        """The command line, with "PORT" for the port."""
        return (self.python, "-m", self.package, *ARGUMENTS, "--port", "PORT")

    def settings(self) -> dict[str, str]:
        """The variables that make Python import this tree and no other."""
        return {"PYTHONPATH": str(self.source)}

    def check(self) -> None:
        """Raise `BuildError` unless this interpreter imports the package from this tree."""
        code = f"import {self.package}; print({self.package}.__file__)"
        found = _run(
            (self.python, "-c", code), "import", cwd=self.root, environment=self.settings()
        )
        if not Path(found.strip()).is_relative_to(self.source):
            raise BuildError(f"{self.title} imports {self.package} from {found.strip()}")


def build_of(root: Path, *, title: str, python: str) -> Build:
    """Return the server in the tree at `root`.

    Raises:
        BuildError: the tree has none of the layouts that we know.
    """
    for folder, package in _LAYOUTS:
        source = (root / folder).resolve()
        if (source / package / "__main__.py").is_file():
            return Build(title=title, root=root, source=source, package=package, python=python)
    raise BuildError(f"{title} has no server that this gate can start")


def work_tree() -> Build:
    """Return the sources around this file, with the interpreter that runs the gate."""
    return build_of(ROOT, title="work tree", python=sys.executable)


@contextlib.contextmanager
def revision(name: str) -> Iterator[Build]:
    """Unpack and install another revision for the block, by any name that git knows.

    Raises:
        BuildError: the revision does not exist, or cannot be installed or started.
    """
    what = f"--verify --quiet --end-of-options {name}^{{commit}}"
    commit = _run(("git", "rev-parse", *what.split(" ")), f"the revision {name}").strip()
    with tempfile.TemporaryDirectory(prefix="repeater-gate-") as folder:
        root, archive = Path(folder) / "tree", Path(folder) / "tree.tar"
        _run(("git", "archive", "--format=tar", f"--output={archive}", commit), "git archive")
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
        build = build_of(root, title=name, python=_environment(root, Path(folder) / "venv"))
        build.check()
        yield build


def _environment(root: Path, folder: Path) -> str:
    """Make an environment with the packages that a tree pins; return its interpreter."""
    pins = root / "requirements.txt"
    if not pins.is_file():
        raise BuildError("the revision has no requirements.txt to install")
    uv = ("uv",) if shutil.which("uv") else (sys.executable, "-m", "uv")
    _run((*uv, "venv", "--quiet", "--python", sys.executable, str(folder)), "uv venv")
    python = str(folder / "bin" / "python")
    _run((*uv, "pip", "install", "--quiet", "--python", python, "-r", str(pins)), "uv pip install")
    return python


def _run(
    command: Sequence[str],
    what: str,
    *,
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a command and return its output."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:]
        raise BuildError(f"{what}: {said or f'exit code {error.returncode}'}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{what}: {error}") from None
    return done.stdout.decode(errors="replace")
